"""The newest frames, as an operational forecast asks for them."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import NamePattern, seconds
from dataset.frames.config import read_config
from dataset.frames.latest import latest
from tests.dataset.archive import START, STEP
from utils.errors import InputError


def test_the_latest_frames_equal_those_of_training(archive):
    now = START + 11 * STEP + timedelta(minutes=4)
    newest = latest(archive.folder, 4, (8, 8), now=now)
    assert [(time - START) // STEP for time in newest.times] == [9, 10, 11, 12]  # one may be early
    np.testing.assert_array_equal(newest.frames, archive.open(img_size=(8, 8), stride=1)[9])
    assert newest.grid.crop(newest.frames).shape == (4, 1, 6, 8)
    assert newest.source.extent == 128


def test_stale_or_incomplete_input_is_refused(archive):
    stale = r"2023-05-01 03:55 UTC, which is more than 3 intervals \(15 minutes\) ago"
    for late in (50.2, 51):
        with pytest.raises(InputError, match=stale):
            latest(archive.folder, 5, (8, 8), now=START + late * STEP)
    archive.path(44).unlink()
    with pytest.raises(InputError, match=r"radar_202305010340.npy is missing"):
        latest(archive.folder, 5, (8, 8), now=START + 48 * STEP)
    latest(archive.folder, 3, (8, 8), now=START + 48 * STEP)
    with pytest.raises(InputError, match=r"none of the 47 frames in .* at present; 47 of them are of the future: see"):
        latest(archive.folder, 3, (8, 8), now=START - 2 * STEP)


def test_excluded_frames_count_as_missing(archive):
    (archive.folder / "frames.exclusions.txt").write_text("20230501T035500\tbad\n20230501T033000\tbad\n")
    newest = latest(archive.folder, 4, (8, 8), now=START + 47 * STEP)
    assert newest.times[-1] == START + 46 * STEP
    with pytest.raises(InputError, match=r"0330.npy is excluded by .*frames.exclusions.txt"):
        latest(archive.folder, 5, (8, 8), now=START + 47 * STEP)


def test_frames_that_repeat_are_told_and_a_stuck_radar_is_refused(archive):
    def newest():
        return latest(archive.folder, 3, (8, 8), now=START + 47 * STEP)

    assert newest().copies == ()
    archive.store(47, archive.frames[46])
    assert newest().copies == (START + 47 * STEP,)
    archive.store(45, archive.frames[46])
    with pytest.raises(InputError, match=r"newest 3 frames .* 03:55 UTC, are all the same"):
        newest()
    for number in (45, 46, 47):
        archive.store(number, np.zeros((6, 8), np.uint8))
    assert newest().copies == ()  # no rain is no sign


def test_frames_of_the_future_are_counted_by_the_clock_alone(archive):
    now = datetime.now(timezone.utc).replace(tzinfo=None, second=0, microsecond=0)
    archive.configure(pattern="%Y%m%d%H%M.npy", interval=1)
    for number in range(-3, 4):
        np.save(archive.folder / f"{now + timedelta(minutes=number):%Y%m%d%H%M}.npy", archive.frames[4 + number])
    assert latest(archive.folder, 3, (8, 8)).early in (1, 2)
    assert latest(archive.folder, 3, (8, 8), now=now).early == 0


@pytest.mark.parametrize("folders", ["%Y/%m/%d", "%Y%m", "%y%j", "%Y/%j/%H", "%y", "radar/%Y%m%d.tar", "%m/%d"])
def test_only_folders_of_days_before_are_left_out(folders):
    pattern = NamePattern(f"{folders}/%Y%m%d%H%M.npy")
    for time in (datetime(2023, 12, 31, 23, 55), datetime(2024, 2, 29), datetime(2023, 1, 1), datetime(2023, 5, 7, 12)):
        levels = pattern.name_of(time).split("/")[:-1]
        for depth in range(len(levels)):
            assert not pattern.ends_before("/".join(levels[: depth + 1]), depth, time)
        ended = pattern.ends_before("/".join(levels), len(levels) - 1, time + timedelta(days=367))
        assert ended == ("y" in folders.lower())


def test_a_long_archive_is_listed_from_a_day_before_a_time(archive):
    for days in (40, 3, 2):
        np.save(archive.path(-288 * days), archive.frames[0])
    frames, since = archive_of(read_config(archive.folder)), START - timedelta(days=1)
    everything = frames.times()
    assert len(everything) == 51
    assert frames.times(since).tolist() == everything[everything >= seconds(since - timedelta(days=1))].tolist()
