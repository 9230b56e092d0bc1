import zlib

import h5py
import numpy as np
import pytest
import torch

from dataset import build_dataset
from dataset.check import check, main
from dataset.exclusions import read_exclusions
from dataset.published.reader import LAYOUTS
from tests.dataset.miniature import SHAPE, write_h5
from utils.errors import InputError

NAMES = ("shanghai", "meteo", "cikm")


def storms(name: str, count: int, seed: int) -> np.ndarray:
    """Windows that all differ, with values that the source may have."""
    layout = LAYOUTS[name]
    return np.random.default_rng(seed).integers(0, layout.full, (count, layout.frames, *SHAPE), np.uint8)


@pytest.fixture
def radar(tmp_path):
    """Write a file with 50 training windows and 3 of the other splits; returns its path."""

    def write(name: str, **changed: np.ndarray):
        stored = ("train", "valid", "test") if LAYOUTS[name].has_valid else ("train", "test")
        splits = {split: storms(name, 50 if split == "train" else 3, seed) for seed, split in enumerate(stored)}
        return write_h5(tmp_path / f"{name}.h5", name, **splits | changed)

    return write


def faults(path, **options):
    return [(fault.event, fault.split, fault.kind) for fault in check(path.stem, path, **options).faults]


def command(path, *more):
    """Exit status."""
    try:
        main(["--dataset", path.stem, "--data_path", str(path), "--num_workers", "0", *more])
    except SystemExit as end:
        return end.code
    return 0


def open_split(path, split="train"):
    return build_dataset(path.stem, split, path, SHAPE, LAYOUTS[path.stem].frames)


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_file_has_no_faults_and_its_windows_counted_by_split(radar, name):
    path = radar(name)
    report = check(name, path)
    assert report.faults == []
    if name == "cikm":
        assert report.counts["usable windows"] == {"train": 50, "valid": 3, "test": 3}
    else:
        assert report.counts["usable windows"] == {"train": 21, "valid": 5, "test": 3}
        assert report.counts["windows held"] == {"train": 21, "": 24, "valid": 5, "test": 3}
    assert command(path) == 0
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def dropped_out(frames):
    frames[5] = 0


def stuck(frames):
    frames[5] = 7


def empty(frames):
    frames[:] = 0


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        ("shanghai", dropped_out, "constant frame"),
        ("cikm", stuck, "constant frame"),
        ("meteo", empty, "constant frame"),
        ("meteo", lambda frames: frames[5, 2:].fill(255) or frames[5, :2].fill(3), "constant frame"),
        ("meteo", lambda frames: frames[5].fill(255), "frame without a valid pixel"),
        ("meteo", lambda frames: frames[5, 0].fill(91), "values that no pixel can have"),
    ],
)
def test_frames_at_fault_are_told(radar, name, change, kind):
    windows = storms(name, 50, 9)
    change(windows[3])
    number = 3 + LAYOUTS[name].first
    event = f"train_sample_{number}" if name == "cikm" else f"train_{number}"
    assert faults(radar(name, train=windows)) == [(event, "train", kind)]


@pytest.mark.parametrize("name", NAMES)
def test_quiet_and_missing_pixels_are_no_faults(radar, name):
    windows = storms(name, 50, 9)
    windows[3, 10:] = 0  # the storm has moved on
    if name == "meteo":
        windows[3, :, 4:] = 255
        windows[4, 2, 1] = 255
    path = radar(name, train=windows)
    assert faults(path) == []
    assert check(name, path).counts["frames without echo"]["train"] == LAYOUTS[name].frames - 10


def replace(file, number, data):
    del file[f"train/{number}"]
    if data is not None:
        file[f"train/{number}"] = data


def store_chunk(file, number, content):
    del file[f"train/{number}"]
    shape = 25, *SHAPE
    window = file.create_dataset(f"train/{number}", data=storms("shanghai", 1, 5)[0], chunks=shape, compression="gzip")
    window.id.write_direct_chunk((0, 0, 0), content)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda file, number: replace(file, number, None), "window is missing"),
        (lambda file, number: replace(file, number, np.zeros((25, *SHAPE), np.int16)), "another type or shape"),
        (lambda file, number: replace(file, number, np.zeros((25, 9, 9), np.uint8)), "another size than most"),
        (lambda file, number: replace(file, number, h5py.SoftLink("/train/1")), "another type or shape"),
        (lambda file, number: store_chunk(file, number, b"broken"), "frames cannot be read"),
        (lambda file, number: store_chunk(file, number, zlib.compress(bytes(2**22))), "frames cannot be read"),
    ],
)
def test_windows_at_fault_are_told_and_fix_lets_the_loaders_live_without_them(radar, spoil, kind):
    path = radar("shanghai")
    whole = open_split(path)
    before, ids = torch.stack(list(whole)), whole.event_ids
    del whole  # and its handle
    with h5py.File(path, "r+") as file:
        spoil(file, 2)
        spoil(file, 47)
    found = check("shanghai", path).faults
    assert [(fault.event, fault.split) for fault in found] == [("train_2", "train"), ("train_47", "valid")]
    assert all(kind in fault.kind for fault in found)
    with pytest.raises(InputError):
        list(open_split(path))

    assert command(path) == 1
    assert command(path, "--fix") == 0
    assert command(path) == 0
    assert list(read_exclusions(path)) == ["train_2", "train_47"]
    dataset = open_split(path)
    assert dataset.event_ids == [event for event in ids if event != "train_2"]
    assert torch.equal(torch.stack(list(dataset)), before[np.arange(len(before)) != 2])
    assert "1 excluded by shanghai.exclusions.txt" in dataset.describe()
    assert open_split(path, "valid").event_ids == ["train_45", "train_46", "train_48", "train_49"]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_window_stays_in_the_later_split_alone(radar, workers):
    train, test = storms("shanghai", 50, 1), storms("shanghai", 3, 2)
    train[1] = train[0]
    train[2] = test[1]
    train[46] = train[3]  # 46 is in the validation split
    path = radar("shanghai", train=train, test=test)
    report = check("shanghai", path, workers=workers)
    assert report.faults == [
        ("train_1", "train", "same frames as another", "train_0 (train)"),
        ("train_2", "train", "same frames as another", "test_1 (test)"),
        ("train_3", "train", "same frames as another", "train_46 (valid)"),
    ]


def test_windows_may_overlap_within_a_split_but_not_across(radar):
    train, test = storms("shanghai", 50, 1), storms("shanghai", 3, 2)
    train[8, :20] = train[7, 5:]
    train[9, 20:] = test[2, :5]
    train[30] = test[1]  # between training and validation, where nobody reads
    report = check("shanghai", radar("shanghai", train=train, test=test))
    assert report.faults == [("train_9", "train", "shares frames with a window of a later split", "test_2 (test)")]


def test_frames_with_next_to_no_echo_may_repeat_by_chance(radar):
    train, test = storms("shanghai", 50, 1), storms("shanghai", 3, 2)
    train[9, 20] = test[2, 5] = np.arange(48).reshape(SHAPE)
    assert faults(radar("shanghai", train=train, test=test)) == []


def test_numbers_of_windows_that_are_wrong_are_told(radar):
    path = radar("shanghai")
    with h5py.File(path, "r+") as file:
        file["train/all_len"][()] = 49
        file["test/all_len"][()] = 10**12
    assert faults(path) == [
        ("train_49", "train", "window is not announced, and never read"),
        ("test/", "test", "far more windows are announced than held"),
    ]
    assert command(path, "--fix") == 1  # a split that nothing can be left out of
    assert list(read_exclusions(path)) == ["train_49"]
    with h5py.File(path, "r+") as file:
        del file["test"]
    assert [kind for *_, kind in faults(path)] == ["split without windows or without their number"]


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cikm\.h5 does not exist"):
        check("cikm", tmp_path / "cikm.h5")
    (tmp_path / "cikm.h5").write_bytes(b"neither HDF5 nor anything else")
    with pytest.raises(InputError, match=r"Cannot read .*cikm\.h5 as HDF5"):
        check("cikm", tmp_path)
