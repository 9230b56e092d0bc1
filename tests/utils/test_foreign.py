"""Files that are no weights are refused by name and kind, and nothing in them is executed."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcast.forecaster import load_forecaster
from tests.utils.test_checkpoint import WEIGHTS
from utils.errors import InputError
from utils.pickles import load_pickle
from utils.weights import load_weights, save_weights


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
    "an empty file": b"",
    "a web page": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
    "a PyTorch or zip file that is cut off": b"PK\3\4" + bytes(99),
    "a safetensors file that is cut off": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "damaged, or of another kind": bytes(range(130, 256)),
}


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_file_is_named_by_its_kind(kind, name, tmp_path):
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
