import logging

import numpy as np
import pytest
import torch

from dataset.check import check, main
from dataset.exclusions import EXCLUSIONS, read_exclusions
from dataset.frames.archive.names import frame_id, seconds
from tests.dataset.archive import START, STEP, Archive, all_missing, truncated, wrong_size
from utils.errors import InputError

SPLIT = {"valid_from": START + 60 * STEP, "test_from": START + 100 * STEP}


@pytest.fixture
def archive(tmp_path) -> Archive:
    """60 frames for training, 40 for validation, 40 for the test; 255 is missing."""
    (tmp_path / "radar").mkdir()
    return Archive(tmp_path / "radar").configure(split=SPLIT, missing=255).add(range(140))


def name(number: int) -> str:
    return frame_id(seconds(START + number * STEP))


def faults(archive, **options):
    return [(fault.event, fault.split, fault.kind) for fault in check("frames", archive.folder, **options).faults]


def command(archive, *more):
    """Exit status."""
    try:
        main(["--dataset", "frames", "--data_path", str(archive.folder), "--num_workers", "0", *more])
    except SystemExit as end:
        return end.code
    return 0


def change(archive, number, **parts):
    """Store a frame with some rows, or all of it, replaced."""
    frame = archive.frames[number].copy()
    frame[parts.get("rows", slice(None))] = parts["value"]
    archive.store(number, frame)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sound_folder_has_no_faults_and_its_frames_counted_by_split(archive, workers):
    report = check("frames", archive.folder, workers=workers)
    assert report.faults == []
    assert report.counts["files"] == report.counts["usable frames"] == {"train": 60, "valid": 40, "test": 40}
    assert report.counts["sequences of 25 frames"] == {"train": 18, "valid": 8, "test": 8}
    assert set(report.counts["sequences lost to gaps"].values()) == {0}
    assert not list(archive.folder.glob(f"*{EXCLUSIONS}"))


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (wrong_size, "frame of another size or type than most"),
        (lambda path: np.save(path, np.zeros((6, 8), np.int16)), "frame of another size or type than most"),
        (truncated, "frames cannot be read"),
        (all_missing, "frame without a valid pixel"),
        (lambda path: np.save(path, np.full((6, 8), 7, np.uint8)), "constant frame"),
        (lambda path: np.save(path, np.zeros((6, 8), np.uint8)), "constant frame"),  # between two frames with echo
    ],
)
def test_a_file_at_fault_is_told_and_fix_makes_it_a_gap(archive, spoil, kind):
    number = 30
    spoil(archive.path(number))
    assert faults(archive) == [(name(number), "train", kind)]
    assert command(archive) == 1
    assert command(archive, "--fix") == 0
    assert command(archive) == 0
    assert list(read_exclusions(archive.folder / "frames.yaml")) == [name(number)]
    dataset = archive.open(stride=1)
    assert "0 unusable files and 1 excluded ones" in dataset.describe()
    assert all(name(number) != dataset.sequence_id(index) for index in range(len(dataset)))


def test_an_odd_first_frame_is_at_fault_and_not_all_others(archive):
    wrong_size(archive.path(0))
    with pytest.raises(InputError, match="no 4 frames in a row"):
        archive.open()
    assert command(archive, "--fix") == 0
    expected = torch.from_numpy(archive.frames[1])[None].float() / 255
    assert torch.equal(archive.open(stride=1)[0][0], expected)


def test_values_far_beyond_the_range_are_told_and_others_cut_off(archive):
    archive.configure(split=SPLIT, scale=0.5, range=[0, 100], thresholds=[16])
    report = check("frames", archive.folder)
    assert report.faults == []
    assert report.counts["frames cut off at 100 VIL byte"]["train"] > 50
    archive.configure(split=SPLIT, offset=-9000)  # as if a code of missing pixels were not declared
    assert {kind for *_, kind in faults(archive)} == {"most values more than a whole range beyond the range"}
    assert len(faults(archive)) == 140


def test_a_few_values_far_beyond_the_range_are_clipped_and_counted(archive):
    archive.configure(split=SPLIT, missing=255, range=[0, 100], thresholds=[16]).add(range(140), dtype=np.float32)
    for number in range(140):
        change(archive, number, value=np.minimum(archive.frames[number], 200))
    change(archive, 3, rows=0, value=1205)
    report = check("frames", archive.folder)
    assert report.faults == []
    row = "pixels more than a whole range beyond the range (0 to 1205 VIL byte), clipped"
    assert report.counts[row] == {"train": 8}
    assert report.counts["usable frames"]["train"] == 60
    assert (archive.open(img_size=(6, 8), seq_len=1, stride=1)[3][0][0, 0, 0] == 1).all()


def test_a_mistake_that_all_frames_share_is_told_once_and_excludes_none(archive):
    for number in range(140):
        archive.path(number).write_bytes(b"no frame")
    with pytest.raises(InputError, match=r"None of the 140 frames in .* can be used: .*radar_202305010000.npy"):
        check("frames", archive.folder)


def test_a_dry_archive_is_weather(archive):
    for number in (5, *range(20, 60)):
        change(archive, number, value=0)
    archive.path(4).unlink()  # or else 5 would be a drop-out
    report = check("frames", archive.folder)
    assert report.faults == []
    assert report.counts["frames without echo"]["train"] == 41


def test_a_frame_of_one_time_that_comes_again_is_told_and_stays_in_the_later_split(archive):
    archive.store(7, archive.frames[6])
    archive.store(8, archive.frames[6])
    archive.store(20, archive.frames[120])
    assert check("frames", archive.folder).faults == [
        (name(7), "train", "same frames as another", f"{name(6)} (train)"),
        (name(8), "train", "same frames as another", f"{name(6)} (train)"),
        (name(20), "train", "same frames as another", f"{name(120)} (test)"),
    ]


def test_clutter_may_repeat(archive):
    for number in (30, 31):
        change(archive, number, value=0)
        change(archive, number, rows=0, value=99)
    assert faults(archive) == []


def test_gaps_and_the_sequences_they_cost_are_counted(archive, caplog):
    for number in (70, 71, 98):
        archive.path(number).unlink()
    for number in (130, 138, 139):
        truncated(archive.path(number))
    with caplog.at_level(logging.INFO):
        assert command(archive, "--fix") == 0
    report = check("frames", archive.folder)
    assert report.counts["excluded by frames.exclusions.txt"] == {"test": 3}
    assert report.counts["files"] == {"train": 60, "valid": 37, "test": 40}
    assert report.counts["gaps"] == {"train": 0, "valid": 2, "test": 1}
    assert report.counts["frames missing in gaps"] == {"train": 0, "valid": 3, "test": 1}
    assert report.counts["sequences of 25 frames"] == {"train": 18, "valid": 1, "test": 3}
    assert report.counts["sequences lost to gaps"] == {"train": 0, "valid": 7, "test": 5}
    assert "WRONG: frames cannot be read" in caplog.text


def test_a_folder_without_splits_can_be_checked(archive):
    archive.configure(split=None)
    truncated(archive.path(3))
    assert faults(archive) == [(name(3), "", "frames cannot be read")]


def test_a_folder_of_which_all_is_excluded_is_named(archive):
    (archive.folder / "frames.exclusions.txt").write_text("".join(f"{name(number)}\n" for number in range(140)))
    with pytest.raises(InputError, match=r"frames\.exclusions\.txt excludes all 140 frames"):
        archive.open()
