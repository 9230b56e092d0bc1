import pickle
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from dataset.published.reader import LAYOUTS, RadarH5, divide, pad, resize_valid
from tests.dataset.miniature import SHAPE, numbers, radar_frames, write_h5
from utils.errors import InputError


def windows(name: str, count: int, first: int = 0, every: int = 5) -> np.ndarray:
    """`count` overlapping windows, uint8 `(N, T, H, W)`."""
    starts = first + every * np.arange(count)
    return np.stack([radar_frames(np.arange(start, start + LAYOUTS[name].frames)) for start in starts])


@pytest.fixture
def radar(tmp_path):
    """Write a file with enough windows for every split; returns its path."""

    def write(name: str):
        splits = {"train": windows(name, 40), "test": windows(name, 3, first=500)}
        if LAYOUTS[name].has_valid:
            splits["valid"] = windows(name, 2, first=1000)
        return write_h5(tmp_path / f"{name}.h5", name, **splits)

    return write


def open_split(path, split="train", **options) -> RadarH5:
    options = {"img_size": SHAPE, "seq_len": LAYOUTS[path.stem].frames} | options
    return RadarH5(path.stem, path, split, **options)


def test_a_shanghai_item_is_its_window_over_255(radar):
    item = open_split(radar("shanghai"), "test")[1]
    assert item.dtype == torch.float32
    assert torch.equal(item, torch.from_numpy(windows("shanghai", 3, 500)[1])[:, None] / torch.tensor(255.0))


def test_meteonet_is_cut_off_at_90_dbz_and_its_missing_pixels_are_nan(tmp_path):
    stored = windows("meteo", 1)
    stored[0, 3, 2, :4] = 90, 91, 254, 255
    frames = open_split(write_h5(tmp_path / "meteo.h5", "meteo", test=stored), "test")[0]
    assert frames[3, 0, 2, :3].tolist() == [1, 1, 1]
    assert frames.isnan().nonzero().tolist() == [[3, 0, 2, 3]]
    valid = ~frames.isnan()
    assert torch.equal((frames * 90).round()[valid], torch.from_numpy(stored[0]).clamp(max=90)[:, None][valid])


def test_meteonet_is_cut_off_before_it_is_resized(tmp_path):
    stored = np.zeros((1, 25, *SHAPE), np.uint8)
    stored[..., ::2, :] = 180
    frames = open_split(write_h5(tmp_path / "meteo.h5", "meteo", test=stored), "test", img_size=(1, 1))[0]
    assert frames.flatten().tolist() == pytest.approx([0.5] * 25)


def test_cikm_stands_in_the_middle_of_padding_that_is_nan(tmp_path):
    stored = np.random.default_rng(0).integers(0, 256, (2, 15, 101, 101), np.uint8)
    frames = open_split(write_h5(tmp_path / "cikm.h5", "cikm", valid=stored), "valid", img_size=(128, 128))[1]
    inside = torch.zeros(128, 128, dtype=torch.bool)
    inside[13:114, 13:114] = True
    assert torch.equal(~frames.isnan(), inside.expand(15, 1, 128, 128))
    assert torch.equal(frames[~frames.isnan()], torch.from_numpy(stored[1]).flatten() / torch.tensor(255.0))


def test_a_shorter_sequence_is_the_begin_of_its_window(radar):
    path = radar("shanghai")
    assert torch.equal(open_split(path, "test", seq_len=10)[2], open_split(path, "test")[2][:10])


@pytest.mark.parametrize("name", ["shanghai", "meteo", "cikm"])
def test_no_split_shares_a_frame_in_time_with_another(radar, name):
    path, seen = radar(name), []
    full, size = LAYOUTS[name].full, SHAPE if name != "cikm" else (128, 128)
    top, left = (0, 0) if name != "cikm" else ((128 - SHAPE[0]) // 2, (128 - SHAPE[1]) // 2)
    for split in ("train", "valid", "test"):
        items = list(DataLoader(open_split(path, split, img_size=size), batch_size=None))
        seen.append(numbers(torch.stack(items)[..., top:, left:].nan_to_num(0) * full))
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen))


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=120), st.integers(2, 25))
def test_training_and_validation_are_apart_however_densely_windows_start(steps, frames):
    starts = np.cumsum([0, *steps]).tolist()
    train, valid = divide(len(starts), frames)
    assert len(valid) == len(starts) // 10
    if train and valid:
        assert starts[train[-1]] + frames <= starts[valid[0]]
        assert len(train) + frames - 1 + len(valid) == len(starts)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(3, 20), st.integers(3, 20))
def test_missing_pixels_have_no_influence_on_resized_frames(seed, height, width):
    missing = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(seed)) > 0.5
    flat = resize_valid(torch.full(missing.shape, 0.75).masked_fill(missing, torch.nan), (height, width))
    torch.testing.assert_close(flat[~flat.isnan()], torch.full_like(flat, 0.75)[~flat.isnan()])


def test_a_resized_pixel_is_valid_if_more_than_half_of_its_weight_is():
    frames = torch.tensor([0.2, 0.4, 0.6, torch.nan]).expand(1, 1, 4, 4)
    resized = resize_valid(frames, (2, 2))
    assert not resized.isnan().any()  # the right ones are valid by 4/7: weights 1, 3, 3
    assert (resized[0, 0, :, 1] < 0.6).all()
    assert resize_valid(frames.where(frames < 0.3, torch.nan), (2, 2)).isnan().all()


def test_padding_puts_an_odd_pixel_below_and_right():
    assert pad(torch.ones(1, 1, 1, 2), 4)[0, 0].nan_to_num(0).nonzero().tolist() == [[1, 1], [1, 2]]


def test_the_scale_is_an_option_that_the_source_and_the_description_tell(radar):
    path = radar("shanghai")
    assert "1.0 is 90 dBZ" in open_split(path).describe()
    dataset = open_split(path, scale=70)
    assert dataset.source.scale == 70
    assert "1.0 is 70 dBZ" in dataset.describe()


@pytest.mark.parametrize("name", ["shanghai", "meteo", "cikm"])
def test_a_source_can_be_drawn_and_scored(name):
    source = LAYOUTS[name].source
    assert len(source.colors) == len(source.bounds) - 1
    assert all(low < high for low, high in pairwise(source.bounds))
    assert set(source.thresholds) <= set(source.bounds)


def test_a_folder_stands_for_the_file_of_the_source_in_it(radar):
    path = radar("cikm")
    assert RadarH5("cikm", path.parent, "test", seq_len=15).event_ids[0] == "test_sample_1"


def test_workers_and_copies_open_files_of_their_own(radar):
    dataset = open_split(radar("shanghai"))
    alone = torch.stack([dataset[index] for index in range(4)])  # leaves the parent's handle open
    assert torch.equal(torch.stack(list(DataLoader(dataset, batch_size=None, num_workers=2)))[:4], alone)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3], alone[3])


def replace_window(file, data):
    del file["train/2"]
    if data is not None:
        file["train/2"] = data


def declare(file, shape):
    del file["train/2"]
    file.create_dataset("train/2", shape, np.uint8, chunks=(1, 8, 8))  # no chunk is written


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.__delitem__("train/all_len"), "with a train split"),
        (lambda file: file["train/all_len"].write_direct(np.array(10**12)), "announces 1000000000000 windows"),
        (lambda file: file["train/all_len"].write_direct(np.array(-1)), "no window for the train split"),
        (lambda file: replace_window(file, None), "Cannot read window train/2 of"),
        (lambda file: replace_window(file, np.zeros((24, *SHAPE), np.uint8)), r"train/2 of .* is uint8 \[24, 6, 8\]"),
        (lambda file: replace_window(file, np.zeros((25, 4, 4), np.uint8)), "mixes frames of 2 sizes"),
        (lambda file: declare(file, (25, 10**6, 10**6)), r"\[25, 1000000, 1000000\]; expected"),
    ],
)
def test_a_broken_file_is_named_with_its_fault_before_anything_is_read(radar, spoil, message):
    path = radar("shanghai")
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=message) as caught:
        open_split(path)
    assert str(path) in str(caught.value)


def test_a_missing_and_a_strange_file_are_named(tmp_path):
    with pytest.raises(InputError, match=r"shanghai\.h5 does not exist; pass"):
        open_split(tmp_path / "shanghai.h5")
    (tmp_path / "shanghai.h5").write_bytes(b"neither HDF5 nor anything else")
    with pytest.raises(InputError, match=r"Cannot read .*shanghai\.h5 as HDF5"):
        open_split(tmp_path / "shanghai.h5")


def test_a_window_that_has_changed_or_gone_since_is_named(radar):
    path = radar("shanghai")
    dataset = open_split(path)
    with h5py.File(path, "r+") as file:
        declare(file, (25, 2048, 2048))
        del file["train/3"]
    with pytest.raises(InputError, match=r"train/2 of .* has changed"):
        dataset[2]
    with pytest.raises(InputError, match="Cannot read window train/3 of"):
        dataset[3]


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("shanghai", "split", "dev"),
        ("cikm", "seq_len", 16),
        ("shanghai", "img_size", (0, 4)),
        ("cikm", "scale", 40.0),  # the highest threshold
        ("meteo", "scale", 70.0),
    ],
)
def test_a_wrong_option_is_an_error(radar, name, option, value):
    with pytest.raises(InputError, match=r"dev|does not fit|not possible|leave the scale out"):
        open_split(radar(name), **{option: value})
