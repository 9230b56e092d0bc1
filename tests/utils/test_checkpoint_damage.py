"""What is damaged or harmful is refused, and resuming takes the newest checkpoint that is whole."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcast.forecaster import load_forecaster
from tests.utils.test_checkpoint import WEIGHTS, save
from utils import checkpoint
from utils.checkpoint import DamagedError, load_pickle, load_weights, newest_whole, save_weights, verify
from utils.errors import InputError


class Canary:
    """An object whose loading would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def zipped(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"garbage")
    return file.getvalue()


def header(content):
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


BROKEN = {
    "zip": zipped("readme.txt"),
    "zip of a pickle": zipped("archive/data.pkl"),
    "header too long": (2**60).to_bytes(8, "little") + b"{}",
    "no tensors": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
}


KINDS = {
    "a text file": b"# epochs: 3\nlr: 1e-4\n",
    "an empty file": b"",
    "a PNG picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "a web page": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
    "a PyTorch or zip file that is cut off": b"PK\3\4" + bytes(99),
    "a safetensors file that is cut off": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "damaged, or of an unknown kind": bytes(range(130, 256)),
}


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_file_is_told_for_what_it_seems_to_be(kind, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(KINDS[kind])
    with pytest.raises(InputError) as refused:
        load_forecaster(path)
    assert f"{name} cannot be read: it seems to be {kind}" in str(refused.value)
    assert "expected are our weights (.safetensors), or a checkpoint of the official code (.pt" in str(refused.value)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_folder_is_no_weights(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="it is a folder; expected are"):
        load_forecaster(tmp_path / name)


class TestLoading:
    @pytest.mark.parametrize("load", [load_weights, load_pickle])
    @pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
    def test_a_broken_file_is_named(self, tmp_path, load, content):
        path = tmp_path / "broken"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^checkpoint \S+broken \w+ .*\.$"):
            load(path)

    @pytest.mark.parametrize("name", ["weights.safetensors", "zipped.pt", "legacy.pt"])
    def test_a_file_cut_anywhere_is_named(self, tmp_path, name):
        path = tmp_path / name
        save_weights(tmp_path / "weights.safetensors", WEIGHTS, {})
        torch.save({"model": WEIGHTS, "step": 3}, tmp_path / "zipped.pt")
        torch.save({"model": WEIGHTS, "step": 3}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
        content = path.read_bytes()
        for length in range(0, len(content), 23):
            path.write_bytes(content[:length])
            with pytest.raises(InputError, match=rf"checkpoint \S+{name} "):
                (load_weights if path.suffix == ".safetensors" else load_pickle)(path)

    @pytest.mark.parametrize("load", [load_weights, load_pickle])
    def test_an_absent_file_and_a_folder_are_named(self, tmp_path, load):
        with pytest.raises(InputError, match="absent does not exist"):
            load(tmp_path / "absent")
        with pytest.raises(InputError, match=f"checkpoint {tmp_path} cannot be read"):
            load(tmp_path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_an_object_is_refused_without_executing_it(self, tmp_path, zipped):
        path, canary = tmp_path / "evil.pt", tmp_path / "executed"
        torch.save({"model": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"evil\.pt is refused: .*more than tensors and plain values"):
            load_pickle(path)
        assert not canary.exists()
        torch.load(path, weights_only=False)
        assert canary.exists(), "the canary is dead: this test would not notice an execution"

    def test_a_file_without_weights_or_settings_is_named(self, tmp_path):
        torch.save([1, 2], tmp_path / "list.pt")
        save_file(WEIGHTS, tmp_path / "foreign.safetensors")
        with pytest.raises(InputError, match=r"list.pt holds no dictionary"):
            load_pickle(tmp_path / "list.pt")
        with pytest.raises(InputError, match=r"foreign.safetensors was not written by this project"):
            load_weights(tmp_path / "foreign.safetensors")


def flip(path, position):
    """Flip a bit of a file's byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


class TestDamage:
    """A checkpoint is what was written, or refused; resuming takes the newest that is whole."""

    @pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.TRAINING, checkpoint.MANIFEST])
    def test_a_flipped_bit_anywhere_is_noticed(self, tmp_path, name):
        (path,) = save(tmp_path, 1)
        verify(path)
        whole = (path / name).read_bytes()
        for position in range(0, len(whole), 7):
            flip(path / name, position)
            if name == checkpoint.MANIFEST and says_the_same(path / name, whole):
                continue
            with pytest.raises(InputError, match=r"ckpt-1 (is damaged|has format)"):
                verify(path)
            (path / name).write_bytes(whole)

    def test_a_flipped_bit_in_weights_that_travel_alone_is_noticed(self, tmp_path):
        path = tmp_path / "best.safetensors"
        save_weights(path, WEIGHTS, {"step": 3})
        whole = path.read_bytes()
        for position in range(0, len(whole), 3):
            flip(path, position)
            try:
                weights, metadata = load_weights(path)
            except InputError:
                continue
            finally:
                path.write_bytes(whole)
            assert metadata == {"step": 3}
            assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS), position

    def test_resuming_skips_what_is_damaged_and_says_why(self, tmp_path, caplog):
        save(tmp_path, 1, 2, 3, 4)
        flip(tmp_path / "ckpt-4" / checkpoint.TRAINING, 99)
        (tmp_path / "ckpt-3" / checkpoint.TRAINING).unlink()
        (tmp_path / "ckpt-2" / checkpoint.MANIFEST).unlink()
        assert newest_whole(tmp_path) == tmp_path / "ckpt-1"
        messages = [record.getMessage() for record in caplog.records]
        assert "ckpt-4 is damaged: the sha256 of training.pt differ" in messages[0]
        assert "ckpt-3 is damaged: training.pt: No such file" in messages[1]
        assert "ckpt-2 is damaged: manifest.json: No such file" in messages[2]

    def test_a_training_does_not_silently_begin_anew(self, tmp_path):
        assert newest_whole(tmp_path) is None
        (path,) = save(tmp_path, 1)
        flip(path / checkpoint.WEIGHTS, 99)
        with pytest.raises(InputError, match=r"every checkpoint in .* is damaged"):
            newest_whole(tmp_path)

    def test_a_format_of_the_future_is_an_error_and_not_damage(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoint, "FORMAT", 3)
        (path,) = save(tmp_path, 1)
        monkeypatch.undo()
        for read in (verify, lambda path: load_weights(path / checkpoint.WEIGHTS), lambda _: newest_whole(tmp_path)):
            with pytest.raises(
                InputError, match="format 3, and this version of DiffCast reads formats up to 2"
            ) as told:
                read(path)
            assert not isinstance(told.value, DamagedError)

    def test_weights_that_do_not_tell_their_format_are_refused(self, tmp_path):
        save_file(WEIGHTS, tmp_path / checkpoint.WEIGHTS, {"diffcast": "{}"})
        with pytest.raises(DamagedError, match=r"weights\.safetensors is damaged: its format version is None"):
            load_weights(tmp_path / checkpoint.WEIGHTS)

    @pytest.mark.parametrize(
        "text", ["", "[]", "[" * 60_000, "{}", '{"files": {}}', '{"files": {"training.pt": 3}}', "\xff"]
    )
    def test_a_strange_manifest_is_damage(self, tmp_path, text):
        (path,) = save(tmp_path, 1)
        (path / checkpoint.MANIFEST).write_bytes(text.encode("latin-1"))
        with pytest.raises(DamagedError, match="ckpt-1 is damaged"):
            verify(path)


def says_the_same(manifest, content):
    try:
        return json.loads(manifest.read_bytes())["files"] == json.loads(content)["files"]
    except (ValueError, KeyError):
        return False
