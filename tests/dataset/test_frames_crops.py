"""Crops of frames: where they are, how likely they are, and that nothing else decides it."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from dataset import build_dataset
from dataset.frames.crops import WEIGHTS
from diffcast.loading import TrainingBatches
from tests.dataset.archive import Archive
from utils.errors import InputError

SHAPE = 100, 170  # pixels, which 4 x 6 blocks cover
WET = 100


@pytest.fixture
def storm(tmp_path) -> Archive:
    """12 frames a split; columns from 128 on are missing everywhere, and the second half of each split is dry."""
    archive = Archive(tmp_path).configure(
        thresholds=[WET],
        missing=255,
        stride=4,
        split={"valid_from": "2023-05-01T01:00", "test_from": "2023-05-01T02:00"},
    )
    for number in range(36):
        frame = np.random.default_rng(number).integers(0, 255, SHAPE).astype(np.uint8)
        frame[40 if number % 12 < 6 else 0 :] %= WET
        frame[:, 128:] = 255
        archive.store(number, frame)
    return archive


def opened(storm, split="train", crop=64, **options):
    return build_dataset("frames", split, storm.folder, crop, seq_len=4, crop=crop, **options)


def complete(storm, start: int) -> np.ndarray:
    """Four frames as stored, with NaN where missing and beyond, up to whole blocks."""
    stored = np.stack([storm.frames[number] for number in range(start, start + 4)])
    values = np.where(stored == 255, np.nan, stored.astype(np.float32) / np.float32(255))
    return np.pad(values, [(0, 0), (0, 128 - 100), (0, 192 - 170)], constant_values=np.nan)


def corner(dataset, index: int) -> tuple[int, int]:
    return tuple(map(int, re.fullmatch(r"\d{8}T\d{6}_y(\d+)_x(\d+)", dataset.sequence_id(index)).groups()))


def weight(storm, window: int, row: int, column: int, side: int = 64) -> float:
    """Weight of a random crop, from the stored frames."""
    frames = complete(storm, 4 * window)[:, row : row + side, column : column + side]
    return 0.02 * np.count_nonzero(~np.isnan(frames)) + np.count_nonzero(255 * frames > WET - 0.5)


@pytest.mark.parametrize("split", ["train", "test"])
def test_tiles_cover_the_frames_with_the_least_overlap_except_where_nothing_is_seen(storm, split):
    dataset = opened(storm, split)
    corners = [corner(dataset, index) for index in range(len(dataset))]
    assert corners == 3 * [(0, 0), (0, 64), (64, 0), (64, 64)]  # not those at columns from 128 on
    assert dataset.event_of(0) == "20230501"
    start = {"train": 0, "test": 24}[split]
    for index in range(len(dataset)):
        row, column = corner(dataset, index)
        expected = complete(storm, start + 4 * (index // 4))[:, None, row : row + 64, column : column + 64]
        np.testing.assert_array_equal(dataset[index], expected)
        number, inside = dataset.part_of(index)
        frames = dataset.map_frames(number)
        np.testing.assert_array_equal(frames[..., inside[0], inside[1]], dataset[index])
        assert frames.shape[-2:] == (128, 192)


@pytest.mark.parametrize(("crop", "corners"), [(96, {(0, 0), (0, 96), (32, 0), (32, 96)}), (256, {(0, 0)})])
def test_tiles_of_other_sizes_cover_the_frames_too(storm, crop, corners):
    dataset = opened(storm, crop=crop)
    assert {corner(dataset, index) for index in range(len(dataset))} == corners
    assert dataset[0].shape == (4, 1, crop, crop)
    assert dataset.source.extent == pytest.approx(128 * crop / 170)
    np.testing.assert_array_equal(dataset[0][:, 0, :96, :96], complete(storm, 0)[:, :96, :96])


def test_a_random_crop_is_as_likely_as_its_valid_and_wet_pixels_say(storm):
    dataset = opened(storm)
    drawn = range(len(dataset), len(dataset) + 3 * 3 * 5)
    weights = np.array([weight(storm, *dataset.place(index)[:1], *corner(dataset, index)) for index in drawn])
    assert (weights == 0).sum() == 3 * 3  # the crops at column 128
    probabilities = np.array([dataset.probability(index) for index in drawn])
    np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-9)

    counts = Counter(np.concatenate([dataset.order(7, epoch)[:] for epoch in range(300)]).tolist())
    assert set(counts) <= set(drawn)
    observed = np.array([counts[index] for index in drawn])
    likely = probabilities > 0
    assert observed[~likely].sum() == 0
    assert observed.sum() == 300 * len(dataset)
    assert chisquare(observed[likely], observed.sum() * probabilities[likely]).pvalue > 0.01


def test_crops_drawn_uniformly_are_as_likely_as_their_valid_pixels_say(storm):
    dataset = opened(storm, crop_by="uniform")
    drawn = range(len(dataset), len(dataset) + 3 * 3 * 5)
    valid = np.array([np.count_nonzero(~dataset[index].isnan().numpy()) for index in drawn])
    np.testing.assert_allclose([dataset.probability(index) for index in drawn], valid / valid.sum(), rtol=1e-9)
    assert set(WEIGHTS) == {"rain", "uniform"}


def test_the_log_says_what_the_probabilities_are(storm, caplog):
    caplog.set_level("INFO")
    dataset = opened(storm)
    dataset.order(0, 0)[:1]
    weights = np.array([sum(weight(storm, w, 32 * r, 32 * c) for r in range(3) for c in range(5)) for w in range(3)])
    driest, wettest = 12 * np.array([weights.min(), weights.max()]) / weights.sum()
    assert "0.02 per valid pixel and 1 more from 100 VIL byte on" in caplog.text
    assert f"about {driest:.2g} from the driest sequence and {wettest:.2g} from the wettest" in caplog.text


def test_draws_depend_on_seed_and_epoch_alone(storm):
    dataset, again = opened(storm), opened(storm)
    one = list(TrainingBatches(dataset, 4, seed=1, start=0, stop=7))
    shares = [TrainingBatches(again, 2, seed=1, start=0, stop=7, rank=rank, processes=2) for rank in (0, 1)]
    assert one == [first + second for first, second in zip(*shares, strict=True)]
    assert list(TrainingBatches(again, 4, seed=1, start=4, stop=7)) == one[4:]
    assert len({tuple(dataset.order(seed, epoch)[:]) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_drawn_crops_are_where_their_names_say(storm):
    dataset = opened(storm)
    for index in dataset.order(0, 0)[:]:
        row, column = corner(dataset, index)
        start = 4 * dataset.place(index)[0]
        expected = complete(storm, start)[:, None, row : row + 64, column : column + 64]
        assert torch.equal(dataset[index].nan_to_num(-1), torch.from_numpy(expected).nan_to_num(-1))


def test_impossible_crops_are_a_sentence(storm, storm_folder):
    with pytest.raises(InputError, match="crop 48 is not possible; use a multiple of 32 pixels"):
        opened(storm, crop=48)
    with pytest.raises(InputError, match="crop belongs to frames"):
        build_dataset("sevir", "train", storm_folder, 64, crop=64)
    with pytest.raises(IndexError):
        opened(storm)[12 + 45]
