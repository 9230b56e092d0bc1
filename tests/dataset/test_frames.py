"""Frames of anybody: values, windows, splits, sizes."""

from datetime import datetime

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.demo_sequences import read_sequences
from dataset.frames.cache import cache as frames_cache
from dataset.frames.cache import encoding as frames_encoding
from dataset.frames.cache.encoding import Grid
from dataset.frames.reader import Runs
from dataset.sevir.catalog import SPLITS
from tests.dataset.archive import START, STEP, Archive
from tests.tiny import ROOT
from utils.errors import InputError

DEMOS = ROOT / "resources" / "demo_sequences"


def number_of(sequence_id: str) -> int:
    return (datetime.strptime(sequence_id, "%Y%m%dT%H%M%S") - START) // STEP


def test_items_are_the_stored_frames_at_the_times_of_their_names(archive):
    dataset = archive.open()
    assert len(dataset) == 11
    assert dataset.sequence_id(3) == "20230501T003000"
    expected = np.stack([archive.frames[number] for number in range(6, 10)])
    assert torch.equal(dataset[3], torch.from_numpy(expected)[:, None].float() / 255)
    assert "24 frames in 1 runs, 11 sequences, 0 gaps" in dataset.describe()
    assert dataset.event_ids == ["20230501T000000"]


@pytest.mark.parametrize(
    ("pattern", "dtype", "variable"),
    [
        ("%Y%m%d/%H%M%S.png", np.uint8, None),
        ("%Y%m%d/%H%M%S.png", np.uint16, None),
        ("%Y-%j-%H-%M.npy", np.float32, None),
        ("%Y/r%Y%m%d_%H%M.nc", np.int16, "dataset1/data1/data"),
    ],
)
def test_every_kind_of_file_gives_the_same_values(tmp_path, pattern, dtype, variable):
    archive = Archive(tmp_path).configure(pattern=pattern, variable=variable).add(range(6), dtype=dtype)
    expected = np.stack([archive.frames[number] for number in range(4)]).astype(np.float32)
    np.testing.assert_allclose(255 * archive.open()[0][:, 0], expected, atol=255 / 65535)


def test_values_are_scaled_clipped_and_masked(tmp_path):
    archive = Archive(tmp_path).configure(scale=70 / 255, offset=-10, range=[-5, 55], thresholds=[20, 40], missing=255)
    stored = np.array([[0, 51, 255], [102, 204, 254]], np.uint8)
    for number in range(4):
        archive.store(number, stored)
    dataset = archive.open(img_size=(2, 3))
    frames = dataset[0]
    expected = [[0, 9 / 60, np.nan], [23 / 60, 51 / 60, 1]]
    np.testing.assert_allclose(frames[0, 0], expected, atol=1 / 65535)
    source = dataset.source
    np.testing.assert_allclose(source.offset + source.scale * frames[0, 0, 1], [18, 46, 55], atol=1e-3)
    assert (source.thresholds, source.steps, source.units) == ((20, 40), (25, 45), "VIL byte")
    assert source.bounds == (-5, 20, 23.9, 27.8, 31.7, 35.6, 39.4, 43.3, 47.2, 51.1, 55)
    assert len(source.bounds) == len(source.colors) + 1


@pytest.mark.parametrize(
    ("limits", "thresholds"),
    [([0, 100], [0.5, 1, 2, 5]), ([0, 60], [10, 20, 30, 40, 50]), ([-10, 50], [10, 15, 20, 25])],
)
def test_a_value_just_at_a_threshold_reaches_it(tmp_path, monkeypatch, limits, thresholds):
    archive = Archive(tmp_path).configure(range=limits, thresholds=thresholds)
    just, below = np.array(thresholds), np.array(thresholds) - 0.01
    for number in range(4):
        archive.store(number, np.float32([just, below]))
    with monkeypatch.context() as patch:  # a cache of other levels is made anew
        for module in (frames_cache, frames_encoding):
            patch.setattr(module, "fine_levels", lambda config: 65534)
        archive.open(img_size=(2, len(just)))
    dataset = archive.open(img_size=(2, len(just)))
    values = dataset.source.scale * dataset[0][0, 0]
    steps = torch.tensor(dataset.source.steps)
    assert (values[0] >= steps).all()
    assert (values[1] < steps).all()


def test_netcdf_attributes_are_used_and_settings_where_there_are_none(tmp_path):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="rain", range=[0, 10], thresholds=[1])
    for number in range(4):
        archive.store(number, np.array([[0, 10], [20, -99]], np.int16))
        with h5py.File(archive.path(number), "r+") as file:
            file["rain"].attrs.update({"scale_factor": 0.25, "add_offset": 1.0, "_FillValue": np.int16(-99)})
    np.testing.assert_allclose(archive.open(img_size=(2, 2))[0][0, 0], [[0.1, 0.35], [0.6, np.nan]], atol=1e-5)
    for number in range(4):
        with h5py.File(archive.path(number), "r+") as file:
            file["rain"].attrs["missing_value"] = np.int16([98, 10])
    assert archive.open(img_size=(2, 2))[0][0, 0].isnan().tolist() == [[False, True], [False, True]]
    for number in range(4):
        with h5py.File(archive.path(number), "r+") as file:
            for key in ("missing_value", "scale_factor", "add_offset"):
                del file["rain"].attrs[key]
    archive.configure(**archive.settings, scale=0.5, offset=0)
    np.testing.assert_allclose(archive.open(img_size=(2, 2))[0][0, 0], [[0, 0.5], [1, np.nan]], atol=1e-5)


def test_no_sequence_crosses_a_gap_and_gaps_are_counted(archive):
    for number in (7, 8, 15):
        archive.path(number).unlink()
    dataset = archive.open(stride=1)
    starts = [number_of(dataset.sequence_id(index)) for index in range(len(dataset))]
    assert starts == [0, 1, 2, 3, 9, 10, 11, 16, 17, 18, 19, 20]
    assert "2 gaps (3 frames missing)" in dataset.describe()
    assert len(dataset.event_ids) == 3


@settings(max_examples=60, deadline=None)
@given(
    halves=st.sets(st.integers(0, 40), min_size=1),  # half intervals
    length=st.integers(1, 6),
    stride=st.integers(1, 4),
)
def test_windows_are_all_the_frames_an_interval_apart(halves, length, stride):
    times = 150 * np.array(sorted(halves))
    runs = Runs.of(times, 300)
    assert sorted(runs.order) == list(range(len(times)))
    found = {tuple(times[runs.order[first : first + length]]) for first in runs.windows(length, 1)}
    assert found == {
        tuple(time + 300 * n for n in range(length))
        for time in times
        if all(time + 300 * n in times for n in range(length))
    }
    assert set(runs.windows(length, stride)) <= set(runs.windows(length, 1))


@settings(max_examples=15, deadline=None)
@given(valid_from=st.integers(5, 40), more=st.integers(5, 40), lost=st.sets(st.integers(0, 59), max_size=6))
def test_splits_share_no_frame(tmp_path_factory, valid_from, more, lost):
    archive = Archive(tmp_path_factory.mktemp("radar"))
    dates = {"valid_from": START + valid_from * STEP, "test_from": START + (valid_from + more) * STEP}
    archive.configure(split=dates, stride=1).add(set(range(60)) - lost, shape=(2, 2))
    seen: dict[str, set[int]] = {}
    for split in SPLITS:
        try:
            dataset = archive.open(split, img_size=(2, 2), seq_len=2)
        except InputError:
            continue
        starts = [number_of(dataset.sequence_id(index)) for index in range(len(dataset))]
        seen[split] = {number + n for number in starts for n in range(2)}
    times = {split: sorted(numbers) for split, numbers in seen.items()}
    for earlier, later in (("train", "valid"), ("valid", "test"), ("train", "test")):
        if earlier in times and later in times:
            assert times[earlier][-1] < times[later][0]


def test_frames_are_padded_right_and_below_and_cropped_back(archive):
    dataset = archive.open(img_size=(8, 16))
    frames = dataset[0]
    assert frames.shape == (4, 1, 8, 16)
    assert (~frames.isnan()).sum() == 4 * 6 * 8
    assert torch.equal(dataset.crop(frames), archive.open()[0])
    assert dataset.source.extent == 256


def test_larger_frames_shrink_to_fit_and_keep_their_proportions():
    grid = Grid.fitting((565, 784), (128, 128))
    assert (grid.fitted, grid.size) == ((92, 128), (128, 128))
    assert Grid.fitting((20, 30), (64, 64)).fitted == (20, 30)


def test_a_shrunk_pixel_does_not_depend_on_missing_ones(tmp_path):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.npy", missing=255)
    frame = np.full((8, 8), 51, np.uint8)
    frame[:, 6:] = 255
    for number in range(4):
        archive.store(number, frame)
    expected = torch.tensor([0.2, 0.2, 0.2, torch.nan]).expand(4, 1, 4, 4)
    assert torch.equal(archive.open(img_size=(4, 4))[0].nan_to_num(-1), expected.nan_to_num(-1))


def test_the_demo_sequences_as_a_folder_of_frames_come_back(tmp_path):
    archive = Archive(tmp_path).configure(pattern="%Y/%m/%d/%H%M.png", stride=25)
    sequences = read_sequences(DEMOS, 5, 20, 128)[:2]
    both = [torch.cat((sequence.inputs, sequence.targets)) for sequence in sequences]
    for day, frames in enumerate(both):
        for number, frame in enumerate((255 * frames[:, 0]).round().byte().numpy()):
            archive.store(288 * day + number, frame)
    dates = {"valid_from": datetime(2023, 5, 2), "test_from": datetime(2023, 5, 3)}
    archive.configure(**archive.settings | {"split": dates})
    for split, expected in zip(("train", "valid"), both, strict=True):
        dataset = archive.open(split, img_size=(128, 128), seq_len=25)
        assert len(dataset) == 1
        assert torch.equal(dataset[0], expected)
    for sequence, shrunk in zip(read_sequences(DEMOS, 5, 20, 64), ("train", "valid"), strict=False):
        assert torch.equal(archive.open(shrunk, img_size=(64, 64), seq_len=25)[0][:5], sequence.inputs)
