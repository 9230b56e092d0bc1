"""Splits of frames by times and by days."""

from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.frames.check import check
from dataset.frames.splits import DAY, ByDays, ByTimes, shared_days
from dataset.sequences import SPLITS
from tests.dataset.archive import Archive
from utils.errors import InputError

PER_DAY = 288  # frames


@pytest.fixture
def days(tmp_path) -> Archive:
    """The last four frames of a day and the first four of the next, for six days from 2023-05-01 on."""
    archive = Archive(tmp_path).configure(stride=1)
    return archive.add(
        [number for day in range(1, 6) for number in range(PER_DAY * day - 4, PER_DAY * day + 4)], shape=(2, 2)
    )


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (
            {"valid": [date(2023, 5, 2)], "test": ["2023-05-04", "2023-05-06"]},
            {"train": ["01", "03", "05"], "valid": ["02"], "test": ["04", "06"]},
        ),
        (  # 2023-05-01 is day 19478 from 1970 on, and 19478 = 6 x 3246 + 2
            {"period": 6, "valid": [5], "test": [1, 3]},
            {"train": ["02", "04", "06"], "valid": ["03"], "test": ["01", "05"]},
        ),
    ],
)
def test_listed_days_are_of_their_split_and_no_sequence_crosses_splits(days, split, expected):
    days.configure(**days.settings | {"split": split})
    for name in SPLITS:
        dataset = days.open(name, img_size=(2, 2), seq_len=3)
        starts = [dataset.sequence_id(index) for index in range(len(dataset))]
        assert sorted({start[6:8] for start in starts}) == expected[name]
        assert not [start for start in starts if start[9:] in ("235000", "235500")]


def test_days_next_to_each_other_in_a_split_give_sequences_over_midnight(days):
    days.configure(**days.settings | {"split": {"valid": ["2023-05-01"], "test": ["2023-05-06"]}})
    dataset = days.open("train", img_size=(2, 2), seq_len=3)
    assert "20230502T235500" in [dataset.sequence_id(index) for index in range(len(dataset))]


def test_check_counts_by_days(days):
    days.configure(**days.settings | {"split": {"valid": ["2023-05-02"], "test": ["2023-05-06"]}})
    assert check(days.folder).counts["files"] == {"train": 28, "valid": 8, "test": 4}


@given(
    valid=st.sets(st.integers(1, 8), min_size=1),
    test=st.sets(st.integers(1, 8), min_size=1),
    period=st.sampled_from([None, 8, 9]),
)
def test_splits_by_days_share_no_day(valid, test, period):
    split = ByDays(tuple(valid), tuple(test - valid), period)
    assert len(shared_days(split, np.arange(0, 30 * DAY, DAY // 3))) == 0


def test_splits_that_share_a_day_are_warned_of_in_a_sentence(archive, caplog):
    assert len(archive.open()) == 11
    message = "1 day(s) have frames of several splits, such as 2023-05-01"
    assert caplog.text.count(message) == 1
    archive.open("test")
    assert caplog.text.count(message) == 1
    times = np.arange(0, 3 * DAY, DAY // 3)
    assert shared_days(ByTimes(DAY // 2, DAY), times).tolist() == [0]
    assert shared_days(ByTimes(DAY, 2 * DAY), times).tolist() == []


@pytest.mark.parametrize(
    "split",
    [
        "2023",
        {"valid": ["2023-05-01"]},
        {"valid": ["2023-05-01"], "test": ["2023-05-01"]},
        {"valid": ["2023-05-01T12:00"], "test": ["2023-05-02"]},
        {"valid": [], "test": ["2023-05-02"]},
        {"valid": "2023-05-01", "test": ["2023-05-02"]},
        {"valid": ["2023-05-01"], "test": ["2023-05-02"], "period": 4},
        {"valid": [1], "test": [5], "period": 4},
        {"valid": [0], "test": [2], "period": 4},
        {"valid_from": "2023-05-02", "test_from": "2023-05-02"},
    ],
)
def test_impossible_splits_are_a_sentence(archive, split):
    archive.configure(split=split)
    with pytest.raises(InputError, match=r"split must be \{valid_from: DATE, test_from: DATE\} .*, not "):
        archive.open()
