"""Times in names: local time, and files that say another one."""

from datetime import datetime

import numpy as np
import pytest

from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import moment
from dataset.frames.complete import complete_config
from dataset.frames.config import read_config
from dataset.frames.latest import latest
from tests.dataset.archive import START, STEP, Archive
from tests.dataset.test_frames_readers import write_odim
from utils.errors import InputError


def local_archive(folder, names, zone="Europe/Helsinki") -> Archive:
    archive = Archive(folder).configure(pattern="%Y%m%d%H%M.npy", interval=30, timezone=zone)
    for name in names:
        np.save(folder / f"{name}.npy", np.full((6, 8), int(name[-4:]) % 200, np.uint8))
    return archive


def found(folder) -> list[str]:
    return [f"{moment(time):%d %H:%M}" for time in archive_of(read_config(folder)).find()["time"]]


def test_names_in_local_time_are_two_or_three_hours_ahead_in_helsinki(tmp_path, caplog):
    local_archive(tmp_path, ["202207010000", "202207010030", "202301010100"])
    assert found(tmp_path) == ["30 21:00", "30 21:30", "31 23:00"]
    assert caplog.text == ""
    assert archive_of(read_config(tmp_path)).name_of(datetime(2022, 6, 30, 21)).name == "202207010000.npy"
    newest = latest(tmp_path, 2, None, now=datetime(2022, 6, 30, 21, 30))
    assert newest.times == (datetime(2022, 6, 30, 21), datetime(2022, 6, 30, 21, 30))


def test_the_hour_that_clocks_show_twice_is_left_out_with_a_warning(tmp_path, caplog):
    names = [f"20221030{hour:02}{minute:02}" for hour in range(1, 6) for minute in (0, 30)]
    local_archive(tmp_path, names)
    times = [f"{day}:{minute}" for day in ("29 22", "29 23", "30 02", "30 03") for minute in ("00", "30")]
    assert found(tmp_path) == times
    assert "2 names in" in caplog.text
    assert "are left out: clocks in Europe/Helsinki show their times twice or never" in caplog.text


def test_the_hour_that_clocks_leave_out_names_no_frame_and_no_gap(tmp_path, caplog):
    names = [f"20230326{hour:02}{minute:02}" for hour in (1, 2, 4, 5) for minute in (0, 30)]
    archive = local_archive(tmp_path, [*names, "202303260315"])
    archive.configure(**archive.settings | {"split": {"valid_from": "2023-04-01", "test_from": "2023-05-01"}})
    times = [f"{day}:{minute}" for day in ("25 23", "26 00", "26 01", "26 02") for minute in ("00", "30")]
    assert found(tmp_path) == times
    assert "1 names" in caplog.text
    dataset = archive.open(seq_len=8)
    assert (len(dataset), dataset.runs.gaps) == (1, 0)


def test_another_time_zone_decodes_anew(tmp_path):
    archive = local_archive(tmp_path, ["202207010000", "202207010030"])
    split = {"split": {"valid_from": "2023-04-01", "test_from": "2023-05-01"}}
    for zone, first in (("Europe/Helsinki", "20220630T210000"), ("Asia/Tokyo", "20220630T150000")):
        archive.configure(**archive.settings | split | {"timezone": zone})
        assert archive.open(seq_len=2).sequence_id(0) == first


@pytest.mark.parametrize("zone", ["Europe", "Europe/Nowhere", "../UTC", "/etc/localtime", 3])
def test_an_unknown_time_zone_is_refused(tmp_path, zone):
    Archive(tmp_path).configure(timezone=zone)
    with pytest.raises(InputError, match="timezone must be the time zone of the times in names, such as"):
        read_config(tmp_path)


def odim_at(folder, number, **changes):
    """A file that says that it is of `START` under the name of another frame."""
    about = {"units": None, "extent_km": None, "range": [-10, 60], "thresholds": [10]}
    archive = Archive(folder).configure(pattern="%Y%m%d%H%M.h5", **about | changes)
    write_odim(archive.path(number))
    return archive_of(read_config(folder))


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_a_file_may_be_off_its_name_by_an_interval(tmp_path, number):
    assert odim_at(tmp_path, number).read(START + number * STEP).metadata.time == START


@pytest.mark.parametrize("number", [-2, 2, 12])
def test_a_file_of_another_time_than_its_name_is_refused(tmp_path, number):
    archive, time = odim_at(tmp_path, number), START + number * STEP
    message = f"{archive.name_of(time)} is of 2023-05-01 00:00 UTC by its content but of {time:%Y-%m-%d %H:%M} UTC by"
    with pytest.raises(InputError, match=message):
        archive.read(time)
    with pytest.raises(InputError, match=message):
        complete_config(tmp_path)


def test_the_right_time_zone_makes_names_and_files_agree(tmp_path):
    assert odim_at(tmp_path, 36, timezone="Europe/Helsinki").read(START).metadata.time == START
