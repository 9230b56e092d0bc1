import h5py
import numpy as np
import pytest
import torch

from dataset.sevir.reader import EmptySplitError, SevirLR
from dataset.source import VIL
from tests.dataset.conftest import SevirFolder
from utils.errors import InputError


@pytest.fixture
def folder(tmp_path) -> SevirFolder:
    """Events A and B in train, C in valid, D in test; 25 frames of 16 x 16 pixels."""
    folder = SevirFolder(tmp_path)
    for year, events in (("2018", ["A", "B"]), ("2019", ["C", "D"])):
        folder.write_file(f"vil/{year}/SEVIR_VIL_{year}.h5", events, shape=(16, 16, 25))
    return folder


def test_windows_of_13_frames_start_every_hour(folder):
    dataset = SevirLR(folder.path, "train", img_size=16, seq_len=13)
    ids = [dataset.sequence_id(i) for i in range(len(dataset))]
    assert ids == [f"{event}+{start}" for event in "AB" for start in (0, 6, 12)]
    expected = folder.vil["B"][:, :, 6:19].transpose(2, 0, 1)[:, None]
    assert torch.equal(dataset[4], torch.from_numpy(expected) / torch.tensor(255.0))


def test_its_frames_are_ten_minutes_apart_and_otherwise_as_in_sevir(folder):
    source = SevirLR(folder.path, "test", img_size=16, seq_len=13).source
    assert (source.interval, source.extent, source.thresholds) == (10, VIL.extent, VIL.thresholds)


@pytest.mark.parametrize("scheme", ["official", "benchmark"])
def test_no_split_shares_an_event_with_another(folder, scheme):
    splits = (SevirLR(folder.path, split, 16, 13, split_scheme=scheme) for split in ("train", "valid", "test"))
    assert [split.event_ids for split in splits] == [["A", "B"], ["C"], ["D"]]


def test_sequences_longer_than_its_events_are_refused(folder):
    with pytest.raises(InputError, match="an event has 25 frames"):
        SevirLR(folder.path, "train", seq_len=26)


def test_files_of_full_sevir_are_no_sevir_lr(folder):
    with h5py.File(folder.file("D"), "r+") as file:
        del file["vil"]
        file["vil"] = np.zeros((2, 16, 16, 49), np.uint8)
    with pytest.raises(EmptySplitError, match="file is not ids and square uint8 frames"):
        SevirLR(folder.path, "test", seq_len=13)
