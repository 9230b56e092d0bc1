"""Resuming takes the newest checkpoint that is complete, and damage is noticed."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.utils.test_checkpoint import WEIGHTS, save
from utils import checkpoint
from utils.checkpoint import newest_whole, verify
from utils.errors import InputError
from utils.weights import DamagedError, load_weights, save_weights


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

    def test_a_format_of_the_future_is_an_error_and_not_damage(self, tmp_path):
        (path,) = save(tmp_path, 1)
        save_file(WEIGHTS, path / checkpoint.WEIGHTS, {"diffcast": '{"format": 3}'})
        manifest = json.loads((path / checkpoint.MANIFEST).read_text())
        (path / checkpoint.MANIFEST).write_text(json.dumps(manifest | {"format": 3}))
        for read in (verify, lambda path: load_weights(path / checkpoint.WEIGHTS), lambda _: newest_whole(tmp_path)):
            with pytest.raises(
                InputError, match="format 3, and this version of DiffCast reads formats up to 2"
            ) as refused:
                read(path)
            assert not isinstance(refused.value, DamagedError)

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
