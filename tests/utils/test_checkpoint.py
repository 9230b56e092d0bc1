"""Checkpoints are whole or absent, found by name, and harmless to load."""

import contextlib
import io
import itertools
import json
import os
import re
import resource
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcast.forecaster import Architecture, load_forecaster_weights
from tests.chaos import disk
from utils import checkpoint
from utils.checkpoint import (
    DamagedError,
    checkpoints,
    drop_leftovers,
    find_weights,
    keep_latest,
    load_pickle,
    load_weights,
    newest_whole,
    save_checkpoint,
    save_weights,
    verify,
)
from utils.errors import InputError
from utils.files import replacing

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
BIG = {"a": torch.zeros(100_000)}
TINY = Architecture("convgru", True, (1, 16, 16), 2, 4, {"stem_dim": 4}, 8, (1, 2), 2, 50)


def save(folder, *steps):
    folder.mkdir(exist_ok=True)
    return [save_checkpoint(folder, step, WEIGHTS, {"step": step}, {"step": step}) for step in steps]


@pytest.fixture
def full_disk():
    """Make files unable to grow beyond 64 kB while this context lasts."""

    @contextlib.contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited()


class Canary:
    """An object whose loading would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestWriting:
    def test_what_is_loaded_is_what_was_saved(self, tmp_path):
        path = tmp_path / "weights.safetensors"
        given = {"transposed": WEIGHTS["a"].T, **WEIGHTS}
        save_weights(path, given, {"step": 3, "note": "é", "list": [1, None]})
        loaded, metadata = load_weights(path)
        assert metadata == {"step": 3, "note": "é", "list": [1, None]}
        assert loaded.keys() == given.keys()
        assert all(torch.equal(loaded[name], given[name]) for name in given)

    def test_a_checkpoint_holds_weights_and_training_state(self, tmp_path):
        (path,) = save(tmp_path / "new", 7)
        assert path == tmp_path / "new" / "ckpt-7"
        assert load_weights(path / checkpoint.WEIGHTS)[1] == {"step": 7}
        assert load_pickle(path / checkpoint.TRAINING) == {"step": 7}
        assert os.listdir(tmp_path / "new") == ["ckpt-7"]

    def test_a_failing_write_leaves_the_old_file(self, tmp_path, full_disk):
        path = tmp_path / "best.safetensors"
        save_weights(path, WEIGHTS, {"step": 1})
        with full_disk, pytest.raises(InputError, match=r"cannot write .*best.safetensors: "):
            save_weights(path, BIG, {"step": 2})
        assert load_weights(path)[1] == {"step": 1}
        assert os.listdir(tmp_path) == ["best.safetensors"]

    def test_an_interrupted_write_leaves_the_old_file_alone(self, tmp_path):
        path = tmp_path / "report.txt"
        path.write_text("old")
        with contextlib.suppress(KeyboardInterrupt), replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["report.txt"]

    @pytest.mark.parametrize(("weights", "training"), [(BIG, {}), (WEIGHTS, BIG)], ids=["weights", "training"])
    def test_a_failing_checkpoint_never_appears(self, tmp_path, full_disk, weights, training):
        save(tmp_path, 1)
        with full_disk, pytest.raises(InputError, match=r"cannot write .*ckpt-2"):
            save_checkpoint(tmp_path, 2, weights, {}, training)
        assert os.listdir(tmp_path) == ["ckpt-1"]

    def test_an_interrupted_checkpoint_never_appears(self, tmp_path, monkeypatch):
        save(tmp_path, 1)

        def fail(_, file):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
        assert os.listdir(tmp_path) == ["ckpt-1"]

    def test_checkpoints_are_ordered_by_step(self, tmp_path):
        save(tmp_path, 900, 1000, 20)
        (tmp_path / "ckpt-old").mkdir()
        assert [path.name for path in checkpoints(tmp_path)] == ["ckpt-20", "ckpt-900", "ckpt-1000"]

    def test_only_the_latest_are_kept(self, tmp_path):
        save(tmp_path, 900, 1000, 20)
        (tmp_path / ".ckpt-1100.123").mkdir()
        (tmp_path / ".best.123.safetensors").touch()
        save_weights(tmp_path / checkpoint.BEST, WEIGHTS, {})
        keep_latest(tmp_path, 2)
        drop_leftovers(tmp_path)
        assert sorted(os.listdir(tmp_path)) == [checkpoint.BEST, "ckpt-1000", "ckpt-900"]

    def test_a_milestone_is_best_latest_a_step_or_a_path(self, tmp_path):
        save(tmp_path, 9, 10)
        save_weights(tmp_path / checkpoint.BEST, WEIGHTS, {})
        file = tmp_path / "ckpt-9" / checkpoint.WEIGHTS
        assert find_weights("best", tmp_path) == tmp_path / "best.safetensors"
        assert find_weights("latest", tmp_path) == tmp_path / "ckpt-10" / checkpoint.WEIGHTS
        assert find_weights("9", tmp_path) == file
        assert find_weights(str(file), tmp_path / "elsewhere") == file
        assert find_weights(str(file.parent), tmp_path / "elsewhere") == file

    @pytest.mark.parametrize("milestone", ["best", "latest", "12", "absent.pt"])
    def test_a_milestone_that_is_not_there_is_named(self, tmp_path, milestone):
        with pytest.raises(InputError, match=f"--ckpt_milestone {milestone}: there is no file"):
            find_weights(milestone, tmp_path)


def zipped(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"garbage")
    return file.getvalue()


def header(content):
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


BROKEN = {
    "empty": b"",
    "random": bytes(range(256)) * 9,
    "text": b"404: Not Found\n",
    "zip": zipped("readme.txt"),
    "zip of a pickle": zipped("archive/data.pkl"),
    "header too long": (2**60).to_bytes(8, "little") + b"{}",
    "no tensors": header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
}


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
        assert "ckpt-2 is damaged: it has lost its manifest.json" in messages[2]

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

    def test_the_first_format_is_still_read(self, tmp_path):
        path = tmp_path / "ckpt-5"
        path.mkdir()
        save_file(WEIGHTS, path / checkpoint.WEIGHTS, {"diffcast": "{}"})
        torch.save({"step": 5}, path / checkpoint.TRAINING)
        assert newest_whole(tmp_path) == path
        assert load_weights(path / checkpoint.WEIGHTS)[1] == {}

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


def write_on_full_disk(folder, call):
    """Write the best weights and a checkpoint, the disk full from the given call on; what was told, if anything."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            disk.at_call(patch, call, disk.full)
            save_weights(folder / checkpoint.BEST, WEIGHTS, {"step": 2})
            save(folder, 2)
    except InputError as error:
        return str(error)


class TestDisk:
    def test_a_disk_full_at_any_call_leaves_the_last_checkpoint(self, tmp_path):
        for call in itertools.count(1):
            folder = tmp_path / str(call)
            save(folder, 1)
            save_weights(folder / checkpoint.BEST, WEIGHTS, {"step": 1})
            told = write_on_full_disk(folder, call)
            if told is None:
                break
            assert re.fullmatch(r"cannot write .*: No space left on device\.", told), call
            assert newest_whole(folder) in (folder / "ckpt-1", folder / "ckpt-2")
            verify(folder / "ckpt-1")
            assert load_weights(folder / checkpoint.BEST)[1]["step"] in (1, 2)
        assert call > 15

    def test_a_vanished_folder_is_not_made_again(self, tmp_path):
        save(tmp_path / "gone", 1)
        shutil.rmtree(tmp_path / "gone")
        with pytest.raises(InputError, match=r"cannot write checkpoint .*gone/ckpt-2: No such file or directory"):
            save_checkpoint(tmp_path / "gone", 2, WEIGHTS, {}, {})
        assert list(tmp_path.iterdir()) == []


class TestForecasters:
    @pytest.fixture
    def saved(self, tmp_path):
        model, path = TINY.build(), tmp_path / "tiny.safetensors"
        save_weights(path, model.state_dict(), {"architecture": TINY.to_metadata()})
        return model, path

    def test_a_forecaster_is_rebuilt_from_its_file(self, saved):
        _, path = saved
        weights, metadata = load_weights(path)
        architecture = Architecture.from_metadata(metadata)
        rebuilt = architecture.build()
        load_forecaster_weights(rebuilt, architecture, path)
        assert architecture == TINY
        assert all(torch.equal(value, weights[name]) for name, value in rebuilt.state_dict().items())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dim": 16}, "dim 8 / 16"),
            ({"backbone": "persistence", "backbone_options": {}}, "backbone convgru / persistence; backbone_options"),
            ({"use_diff": False}, "use_diff True / False"),
            ({"frames_out": 6, "segment_length": None}, "frames_out 4 / 6; segment_length 2 / None"),
        ],
    )
    def test_another_architecture_is_told_apart(self, saved, changes, message):
        other = replace(TINY, **changes)
        with pytest.raises(InputError, match=rf"\(checkpoint / command line\): {message}.*\.$"):
            load_forecaster_weights(other.build(), other, saved[1])
