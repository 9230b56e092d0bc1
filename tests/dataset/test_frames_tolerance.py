"""Frames whose names are off the nominal times of their sequence."""

import logging
from datetime import datetime, timedelta

import numpy as np
import pytest
import torch

from dataset.check import check
from dataset.exclusions import write_exclusions
from dataset.frames.archive.names import NamePattern
from dataset.frames.cache.encoding import Encoder
from dataset.frames.latest import latest
from tests.dataset.archive import START, STEP, Archive, truncated
from utils.errors import InputError

OFF = (12, -39, 0, 25, -8)  # seconds


@pytest.fixture
def archive(tmp_path) -> Archive:
    """48 frames named up to 39 s off the five-minute marks."""
    (tmp_path / "radar").mkdir()
    archive = Archive(tmp_path / "radar").configure(pattern="r%Y%m%d%H%M%S.npy", tolerance=45)
    for number in range(48):
        add(archive, number, OFF[number % 5])
    return archive


def add(archive, number, off):
    frame = np.random.default_rng([number, off + 100]).integers(0, 255, (6, 8)).astype(np.uint8)
    path = archive.folder / f"{START + number * STEP + timedelta(seconds=off):r%Y%m%d%H%M%S}.npy"
    np.save(path, frame)
    archive.frames[number] = frame
    return path


def test_a_frame_stands_for_the_nominal_time_that_its_name_is_near(archive):
    for split, numbers in (("train", range(24)), ("valid", range(24, 36)), ("test", range(36, 48))):
        dataset = archive.open(split, stride=1)
        ids = [dataset.sequence_id(index) for index in range(len(dataset))]
        assert ids == [f"{START + number * STEP:%Y%m%dT%H%M%S}" for number in numbers[:-3]]
        for index, number in enumerate(numbers[:-3]):
            assert torch.equal(dataset[index][0, 0], torch.from_numpy(archive.frames[number]).float() / 255)


def test_the_nearer_of_two_frames_counts_and_the_other_is_told(archive, caplog):
    kept = archive.frames[5]
    add(archive, 5, 20)
    with caplog.at_level(logging.WARNING):
        frames = archive.open(stride=1)[5]
    assert torch.equal(frames[0, 0], torch.from_numpy(kept).float() / 255)
    assert "1 frames" in caplog.text
    assert "r20230501002520.npy" in caplog.text
    write_exclusions(archive.folder / "frames.yaml", {"20230501T002512": "by hand"})
    assert torch.equal(archive.open(stride=1)[5][0, 0], torch.from_numpy(archive.frames[5]).float() / 255)


def test_frames_far_from_every_nominal_time_are_left_out_and_told(archive, caplog):
    add(archive, 48, -100)
    assert len(archive.open("test", stride=1)) == 9
    assert "such as r20230501035820.npy: they are not within 45 s of a multiple of 5 minutes" in caplog.text
    for path in set(archive.folder.glob("*.npy")) - {archive.folder / "r20230501035820.npy"}:
        path.unlink()
    with pytest.raises(InputError, match=r"has no frame within 45 s of a multiple of 5 minutes; correct"):
        archive.open()


def test_another_tolerance_decodes_nothing_anew(archive, monkeypatch):
    archive.open()
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("decoded again"))
    assert len(archive.configure(**archive.settings | {"tolerance": 30}).open(stride=1)) < 21


def test_a_forecast_starts_from_nominal_times(archive):
    add(archive, 46, -100)
    newest = latest(archive.folder, 4, (6, 8), now=START + 47 * STEP)
    assert newest.times == tuple(START + number * STEP for number in range(44, 48))
    assert torch.equal(newest.frames, archive.open("test", stride=1)[8])
    (archive.folder / "r20230501034921.npy").unlink()
    with pytest.raises(InputError, match=r"r20230501035000.npy is missing"):
        latest(archive.folder, 4, (6, 8), now=START + 47 * STEP)
    write_exclusions(archive.folder / "frames.yaml", {f"{START + 45 * STEP + timedelta(seconds=12):%Y%m%dT%H%M%S}": ""})
    with pytest.raises(InputError, match=r"r20230501034500.npy is excluded by"):
        latest(archive.folder, 3, (6, 8), now=START + 47 * STEP)


def test_a_check_names_frames_as_their_files_and_counts_sequences_as_training_does(archive):
    truncated(archive.folder / f"{START + 6 * STEP + timedelta(seconds=-39):r%Y%m%d%H%M%S}.npy")
    report = check("frames", archive.folder)
    assert [fault.event for fault in report.faults] == ["20230501T002921"]
    assert report.counts["frames missing in gaps"]["train"] == 1


def test_without_a_tolerance_the_spacing_of_the_names_is_told(archive):
    archive.configure(**archive.settings | {"tolerance": None})
    told = r"25 frames, at most 1 in a row, their spacing 4.15 to 5.65 minutes\); correct interval, tolerance or split"
    with pytest.raises(InputError, match=told):
        archive.open()


@pytest.mark.parametrize("tolerance", [0, -3, "often", 150])
def test_a_tolerance_is_above_0_and_below_half_of_the_interval(archive, tolerance):
    with pytest.raises(InputError, match=r"frames.yaml: tolerance must be .*, not "):
        archive.configure(**archive.settings | {"tolerance": tolerance}).open()


def test_years_of_two_digits_and_days_of_the_year_are_read():
    pattern = NamePattern("AQC%y%j%H%MF_00005.801.png")
    assert pattern.time_of("AQC151351545F_00005.801.png") == datetime(2015, 5, 15, 15, 45)
    assert pattern.time_of("AQC153661545F_00005.801.png") is None  # day 366 of 365
    assert pattern.time_of("AQC681351545F_00005.801.png").year == 2068
    assert pattern.time_of("AQC691351545F_00005.801.png").year == 1969
    assert NamePattern("%Y/%y%m%d.png").time_of("2015/160501.png") is None
