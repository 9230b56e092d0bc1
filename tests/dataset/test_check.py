import errno
import logging
import os

import h5py
import numpy as np
import pytest
import torch

from dataset import DATASETS, build_dataset, hdf5
from dataset.check import CHECKS, check, main
from dataset.exclusions import EXCLUSIONS, read_exclusions
from dataset.sevir import reader as sevir_module
from dataset.sevir.packed import Packed, pack
from dataset.sevir.reader import Sevir
from tests.dataset.archive import aged
from utils.errors import InputError


def faults(sevir, **options):
    return [(fault.event, fault.split, fault.kind) for fault in check("sevir", sevir.path, **options).faults]


def command(sevir, *more):
    """Exit status."""
    try:
        main(["--data_path", str(sevir.path), "--num_workers", "0", *more])
    except SystemExit as end:
        return end.code
    return 0


def change_frames(sevir, event, change):
    with h5py.File(sevir.file(event), "r+") as file:
        index = sevir.row(event)["file_index"]
        frames = file["vil"][index]
        change(frames)
        file["vil"][index] = frames


def change_row(sevir, event, **changes):
    sevir.row(event).update(changes)
    sevir.write_catalog()


def test_a_sound_set_has_no_faults_and_its_events_counted_by_split(sevir):
    change_row(sevir, "B", pct_missing="1")
    report = check("sevir", sevir.path)
    assert report.faults == []
    assert report.counts["usable events"] == {"train": 1, "valid": 1, "test": 1}
    assert report.counts["vil rows"] == {"train": 2, "valid": 1, "test": 1}
    assert report.counts["pct_missing is not 0"] == {"train": 1}
    assert command(sevir) == 0
    assert not (sevir.path / EXCLUSIONS).exists()


def test_reading_processes_find_the_same(sevir):
    change_frames(sevir, "A", lambda frames: frames[..., 7].fill(9))
    assert faults(sevir, workers=2) == faults(sevir) == [("A", "train", "constant frame")]


def test_every_data_set_can_be_checked():
    assert CHECKS.keys() == DATASETS.keys()


def test_dates_of_splits_are_for_this_layout_alone(sevir):
    assert check("sevir", sevir.path, "benchmark").faults == []
    with pytest.raises(InputError, match="split benchmark is for sevir"):
        check("cikm", sevir.path, "benchmark")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"id": "../B"}, "unreadable catalogue row"),
        ({"file_name": "vil/2018/gone.h5"}, "file is missing"),
        ({"file_index": "2"}, "file_index is out of range"),
        ({"file_index": "0"}, "id in the file differs from the catalogue's"),
    ],
)
def test_a_row_at_fault_is_told(sevir, changes, kind):
    change_row(sevir, "B", **changes)
    (fault,) = check("sevir", sevir.path).faults
    assert (fault.event, fault.kind) == (changes.get("id", "B"), kind)
    assert command(sevir) == 1


def test_repeated_ids_are_told_once_a_row(sevir):
    sevir.rows.append(dict(sevir.row("B")))
    sevir.write_catalog()
    assert faults(sevir) == [("B", "train", "id occurs more than once")] * 2


def truncated(sevir):
    path = sevir.file("A")
    path.write_bytes(path.read_bytes()[:-100])
    aged(path)


def other_type(sevir):
    sevir.write_file("vil/2018/SEVIR_VIL_2018.h5", ["A", "B"], dtype=np.int16)


def other_shape(sevir):
    sevir.write_file("vil/2018/SEVIR_VIL_2018.h5", ["A", "B"], shape=(16, 16, 25))


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (truncated, "file cannot be opened"),
        (other_type, "file is not ids and square uint8 frames [N, H, W, frames of an event]"),
    ],
)
def test_a_file_at_fault_is_told_for_each_of_its_events(sevir, spoil, kind):
    spoil(sevir)
    assert faults(sevir) == [("A", "train", kind), ("B", "train", kind)]


def test_a_damaged_chunk_is_told_for_its_event_alone(sevir):
    sevir.write_file("vil/2018/SEVIR_VIL_2018.h5", ["A", "B"], compression="gzip")
    with h5py.File(sevir.file("B"), "r+") as file:
        chunk = file["vil"].chunks
        file["vil"].id.write_direct_chunk(tuple(n - n % c for n, c in zip((1, 0, 0, 0), chunk, strict=True)), b"broken")
    damaged = "AB" if chunk[0] > 1 else "B"
    assert faults(sevir) == [(event, "train", "frames cannot be read") for event in damaged]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda frames: frames[3, 3, 3:5].fill(255), "255 (missing) in a frame, though pct_missing is 0"),
        (lambda frames: frames[..., 48].fill(7), "constant frame"),
        (lambda frames: frames[..., 20].fill(0), "constant frame"),
        (lambda frames: frames.fill(0), "constant frame"),
    ],
    ids=["missing", "constant", "drop-out", "empty"],
)
def test_frames_at_fault_are_told(sevir, change, kind):
    change_frames(sevir, "B", change)
    assert faults(sevir) == [("B", "train", kind)]


def test_quiet_frames_are_weather(sevir):
    def quiet(frames):
        frames[..., 40:] = 0  # the storm has moved on
        frames[..., 10] = 0  # a drop-out in rain, and a moment without the faintest echo
        frames[..., 9] %= 16

    change_frames(sevir, "B", quiet)
    report = check("sevir", sevir.path)
    assert report.faults == []
    assert report.counts["frames without echo"]["train"] == 10


def test_an_event_under_two_ids_keeps_its_place_in_the_later_split(sevir):
    change_frames(sevir, "D", lambda frames: np.copyto(frames, sevir.vil["A"]))
    (fault,) = check("sevir", sevir.path).faults
    assert fault == ("A", "train", "same frames as another", "D (test)")


@pytest.mark.parametrize(
    ("time", "east", "overlaps"),
    [
        ("2019-01-01 03:30:00", -97.0, True),  # B is at 23:55 the day before, and lasts four hours
        ("2019-01-01 03:56:00", -97.0, False),
        ("2019-01-01 03:30:00", -90.0, False),
    ],
)
def test_splits_overlap_where_events_share_time_and_place(sevir, time, east, overlaps):
    box = {"llcrnrlat": 36, "llcrnrlon": -100, "urcrnrlat": 39, "urcrnrlon": -96}
    for row in sevir.rows:
        row.update(box)
    sevir.row("C").update(time_utc=time, llcrnrlon=east, urcrnrlon=east + 4)
    sevir.write_catalog(columns=tuple(sevir.rows[0]))
    expected = [("B", "train", "overlaps an event of another split in time and place")]
    assert faults(sevir) == (expected if overlaps else [])


def test_fix_excludes_what_is_at_fault_and_nothing_else(sevir, caplog):
    change_frames(sevir, "B", lambda frames: frames[..., 9].fill(7))
    pack("sevir", sevir.path, 16)
    assert command(sevir) == 1
    assert command(sevir, "--fix") == 0
    assert read_exclusions(sevir.path) == {"B": "constant frame: frame 9"}
    with caplog.at_level(logging.INFO):
        dataset = Sevir(sevir.path, "train", 16)
    assert dataset.event_ids == ["A"]
    assert dataset.skipped == {"excluded by exclusions.txt": 1}
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert check("sevir", sevir.path).counts["excluded by exclusions.txt"] == {"train": 1}
    assert command(sevir) == 0

    packed = build_dataset("sevir", "train", sevir.path, 16)
    assert isinstance(packed, Packed)
    assert packed.event_ids == ["A"]
    assert packed.skipped == {"excluded by exclusions.txt": 1}


def test_fix_lets_the_loaders_live_with_a_truncated_file(sevir):
    truncated(sevir)
    with pytest.raises(InputError):
        Sevir(sevir.path, "valid", 16), Sevir(sevir.path, "train", 16)
    (sevir.path / EXCLUSIONS).write_text("# by hand\nC\tblocked beam\n")
    assert command(sevir, "--fix") == 0
    assert list(read_exclusions(sevir.path)) == ["A", "B", "C"]
    assert Sevir(sevir.path, "test", 16).event_ids == ["D"]


def test_fix_says_when_a_row_has_no_id_to_exclude(sevir):
    change_row(sevir, "B", id="no id")
    assert command(sevir, "--fix") == 1


def failing(monkeypatch, times, number=errno.EIO):
    """Let the next readings of frames fail."""
    original, left = sevir_module.read_frames, [None] * times

    def read_frames(*arguments):
        if left:
            left.pop()
            raise OSError(number, "read failed")
        return original(*arguments)

    monkeypatch.setattr(sevir_module, "read_frames", read_frames)
    monkeypatch.setattr(hdf5, "PAUSES", (0, 0, 0))


def test_a_transient_error_of_reading_is_tried_again_with_the_file_opened_anew(sevir, monkeypatch, caplog):
    dataset = Sevir(sevir.path, "train", 16)
    expected = dataset[6]
    failing(monkeypatch, 3)
    opened, open_hdf5 = [], sevir_module.open_hdf5
    monkeypatch.setattr(sevir_module, "open_hdf5", lambda path: opened.append(open_hdf5(path)) or opened[-1])
    assert torch.equal(dataset[6], expected)
    assert caplog.text.count("trying again") == 3
    assert [bool(file) for file in opened] == [False, False, True]  # closed after each error


@pytest.mark.parametrize(("number", "tries"), [(errno.EIO, 4), (errno.ENXIO, 1)])
def test_a_lasting_error_names_the_file_and_the_reason(sevir, monkeypatch, caplog, number, tries):
    dataset = Sevir(sevir.path, "train", 16)
    failing(monkeypatch, tries, number)
    with pytest.raises(InputError, match=rf"cannot read .*SEVIR_VIL_2018\.h5: {os.strerror(number)}"):
        dataset[6]
    assert caplog.text.count("trying again") == tries - 1


def test_errors_that_hdf5_only_tells_in_words_are_tried_again(monkeypatch):
    monkeypatch.setattr(hdf5, "PAUSES", (0,))
    answers = iter([RuntimeError("Can't get chunk (file read failed: errno = 5, ...)"), None])

    def read():
        if error := next(answers):
            raise error
        return "frames"

    assert hdf5.patiently(read) == "frames"
