"""Checkpoints are whole or absent, and found by name."""

import contextlib
import itertools
import os
import re
import resource
import shutil

import pytest
import torch

from tests.chaos import disk
from utils import checkpoint
from utils.checkpoint import (
    checkpoints,
    drop_leftovers,
    find_weights,
    keep_latest,
    newest_whole,
    save_checkpoint,
    verify,
)
from utils.errors import InputError
from utils.files import replacing
from utils.pickles import load_pickle
from utils.weights import load_weights, save_weights

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
BIG = {"a": torch.zeros(100_000)}


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
        with pytest.raises(InputError, match=f"weights {milestone}: there is no file"):
            find_weights(milestone, tmp_path)


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
