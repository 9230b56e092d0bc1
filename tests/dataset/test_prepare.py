import logging
import pickle
import shutil
import struct
import zipfile
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from dataset.published.prepare import CIKM_SHAPE, main, pickled_datetimes, prepare, to_dbz
from dataset.published.reader import RadarH5
from tests.dataset.miniature import (
    SHAPE,
    date,
    numbers,
    radar_frames,
    tenths,
    write_cikm,
    write_meteonet,
    write_objects,
    write_shanghai,
)
from utils.errors import InputError

MISSING = np.zeros(SHAPE, bool)
MISSING[:, -1] = True


def published_windows(times, wet, advance: int) -> list[list[int]]:
    """The frame numbers of the windows that the published rule keeps."""
    kept, start = [], 0
    while start + 25 <= len(times):
        if wet[start + 5]:
            kept.append(list(times[start : start + 25]))
        start += advance if wet[start + 5] else 5
    return kept


def stored_windows(path: Path, split: str, count: str) -> list[np.ndarray]:
    with h5py.File(path) as file:
        return [file[f"{split}/{number}"][()] for number in range(file[count][()])]


def first_column_of_numbers(windows) -> list[list[int]]:
    return [[numbers(frame).pop() for frame in window] for window in windows]


def assert_splits_are_apart(name: str, path: Path, full: int) -> None:
    seen = []
    for split in ("train", "valid", "test"):
        dataset = RadarH5(name, path, split, img_size=SHAPE)
        items = [dataset[index] for index in range(len(dataset))]
        frames = [item if torch.is_tensor(item) else item[0] for item in items]
        seen.append(numbers(torch.stack(frames) * full))
    assert sum(map(len, seen)) == len(set.union(*seen))


@pytest.fixture
def shanghai(tmp_path):
    """Seven periods of 130 frames, of which some are dry; `wet[period][frame]` says which."""
    wet = np.random.default_rng(0).random((7, 130)) > 0.3
    times = np.arange(7 * 130).reshape(7, 130)
    write_shanghai(tmp_path / "raw", [radar_frames(*period) for period in zip(times, wet, strict=True)])
    return SimpleNamespace(raw=tmp_path / "raw", out=tmp_path / "shanghai.h5", times=times.tolist(), wet=wet)


def test_shanghai_windows_are_the_published_ones(shanghai):
    counts = prepare("shanghai", shanghai.raw, shanghai.out)
    for split, periods, advance in (("train", range(5), 15), ("test", range(5, 7), 5)):
        expected = [w for i in periods for w in published_windows(shanghai.times[i], shanghai.wet[i], advance)]
        windows = stored_windows(shanghai.out, split, f"{split}/all_len")
        assert first_column_of_numbers(windows) == expected
        assert counts[split] == len(expected)
        assert all(
            np.array_equal(window, radar_frames(times, shanghai.wet.ravel()[times]))
            for window, times in zip(windows, expected, strict=True)
        )
    assert_splits_are_apart("shanghai", shanghai.out, 255)


def test_a_prepared_item_equals_its_pictures(shanghai):
    prepare("shanghai", shanghai.raw, shanghai.out)
    item = RadarH5("shanghai", shanghai.out, "test", img_size=SHAPE)[0]
    start = published_windows(shanghai.times[5], shanghai.wet[5], 5)[0][0] - 5 * 130
    pictures = [np.asarray(Image.open(shanghai.raw / "period_5" / f"{start + i}.png")) for i in range(25)]
    assert np.array_equal(item[:, 0], np.stack(pictures) / np.float32(255))


@pytest.fixture
def meteonet(tmp_path):
    """Three files of 250 frames: a jump in time in the first, a missing date in the second, the third is the test."""

    def write(product: str = "old"):
        runs = [range(0, 100), range(103, 253), range(253, 300), range(301, 503), range(503, 753)]
        times = [[*runs[0], *runs[1]], list(range(253, 503)), list(runs[4])]
        for number, of_file in enumerate(times):
            frames = radar_frames(of_file)
            old = np.where(MISSING, 255, frames).astype(np.int16 if product == "sample" else np.uint8)
            stored = tenths(frames, MISSING) if product == "new" else old
            path = tmp_path / "raw" / f"radar_{'cab'[number]}.npz"  # not in order of time
            write_meteonet(path, of_file, stored, [300] if number == 1 else [], protocol=number + 2)
        return SimpleNamespace(raw=tmp_path / "raw", out=tmp_path / "meteo.h5", runs=[[*runs[0]], *map(list, runs[1:])])

    return write


@pytest.mark.parametrize("product", ["old", "new", "sample"])
def test_meteonet_windows_span_no_gap_and_no_missing_date(meteonet, product):
    raw = meteonet(product)
    prepare("meteonet", raw.raw, raw.out)
    train = [raw.runs[0], raw.runs[1] + raw.runs[2], raw.runs[3]]  # a run goes on from file to file
    for split, runs, advance in (("train", train, 15), ("test", raw.runs[4:], 5)):
        expected = [w for times in runs for w in published_windows(times, [True] * len(times), advance)]
        windows = stored_windows(raw.out, split, f"{split}_len")
        assert first_column_of_numbers(windows) == expected
        assert all((window == 255).sum() == 25 * MISSING.sum() for window in windows)
    frames = RadarH5("meteo", raw.out, "test", img_size=SHAPE)[0]
    expected = np.where(MISSING, np.nan, radar_frames(raw.runs[4][:25]) / np.float32(90))
    np.testing.assert_array_equal(frames[:, 0], expected)


def test_meteonet_splits_share_no_frame(tmp_path):
    for number in range(2):
        times = range(600 * number, 600 * (number + 1))
        write_meteonet(tmp_path / "raw" / f"{number}.npz", times, radar_frames(times))
    prepare("meteonet", tmp_path / "raw", tmp_path / "meteo.h5")
    assert_splits_are_apart("meteo", tmp_path / "meteo.h5", 90)


def test_tenths_of_dbz_become_whole_dbz():
    tenths = np.array([[-200, -100, -1, 0, 4, 6, 155, 700, 1500]], np.int16)
    assert to_dbz(tenths).tolist() == [[255, 0, 0, 0, 0, 1, 16, 70, 90]]
    rainfall = [[-1, 0, 250]], np.int16
    strange = ([[8, 16, 91]], np.int16), ([[8, 16, -1]], np.int8), ([[-201, -200]], np.int16), ([[8, 16]], np.float32)
    for values in (rainfall, *strange):
        with pytest.raises(ValueError, match="neither whole dBZ nor tenths"):
            to_dbz(np.array(*values))


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i2", "u2", "i8"])
def test_whole_dbz_may_be_numbers_of_any_width(kind):
    old = to_dbz(np.array([[0, 8, 70, 255]], kind))
    assert old.dtype == np.uint8
    assert old.tolist() == [[0, 8, 70, 255]]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_datetimes_are_read(protocol):
    dates = [datetime(2016, 2, 29, 23, 55), datetime(2018, 12, 31), datetime(2018, 12, 31, 10, 10, 10)]
    assert pickled_datetimes(pickle.dumps(np.array(dates, object), protocol)) == dates
    assert pickled_datetimes(pickle.dumps(np.array([], object), protocol)) == []


def test_dates_may_be_plain_arrays_too(tmp_path):
    for number in range(2):
        times = range(25 * number, 25 * (number + 1))
        dates = np.array([date(time) for time in times], "datetime64[s]")
        path = tmp_path / "raw" / f"{number}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, data=radar_frames(times), dates=dates, miss_dates=np.array([]))
    assert prepare("meteonet", tmp_path / "raw", tmp_path / "meteo.h5") == {"train": 1, "test": 1}


class Hostile:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_program_in_the_dates_is_not_executed(tmp_path):
    path = tmp_path / "raw" / "radar.npz"
    write_meteonet(path, range(2), radar_frames(range(2)))
    shutil.copy(path, tmp_path / "copy.npz")
    with zipfile.ZipFile(tmp_path / "copy.npz") as good, zipfile.ZipFile(path, "w") as bad:
        write_objects(bad, "dates", [Hostile(tmp_path / "was_here"), date(1)])
        for name in ("data.npy", "miss_dates.npy"):
            bad.writestr(name, good.read(name))
    with pytest.raises(InputError, match=r"radar\.npz is not as published"):
        prepare("meteonet", tmp_path / "raw", tmp_path / "meteo.h5")
    assert not (tmp_path / "was_here").exists()


def write_changed(change, path: Path) -> None:
    """An archive with `change` done to the bytes of its frames, description included."""
    write_meteonet(path, range(2), radar_frames(range(2)))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"data.npy": change(members["data.npy"])}).items():
            archive.writestr(name, content)


def announce_a_terabyte(data: bytes) -> bytes:
    return data.replace(f"(2, {SHAPE[0]}, {SHAPE[1]})".encode(), b"(2, 9999999, 99999)")


def break_off_the_description(data: bytes) -> bytes:
    return data.replace(b", }", b", \0")


def describe_at_length(data: bytes) -> bytes:
    return data[:8] + struct.pack("<H", 60_000) + data[10:].ljust(60_000)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (partial(write_changed, break_off_the_description), r"a\.npz is not as published"),
        (partial(write_changed, describe_at_length), r"a\.npz is not as published"),
        (partial(write_changed, lambda data: data[:-1]), r"a\.npz is not as published"),
        (lambda path: path.write_bytes(b"no archive"), r"a\.npz is not as published"),
        (lambda path: np.savez(path, data=radar_frames([0])), r"a\.npz is not as published"),
        (lambda path: write_meteonet(path, [1, 0], radar_frames([0, 1])), "do not increase"),
        (lambda path: write_meteonet(path, [0, 1], radar_frames([0])), "values for 2 dates"),
        (lambda path: write_meteonet(path, [0], radar_frames([0])[0]), r"a\.npz holds \[6, 8\] values"),
        (lambda path: write_meteonet(path, range(30), radar_frames(range(30)) / 2), "neither whole dBZ nor tenths"),
        (lambda path: write_meteonet(path, [40, 60], radar_frames([40, 60])), r"do not go together"),
        (lambda path: write_meteonet(path, [0, 1], radar_frames([0, 1], shape=(9, 9))), r"do not go together"),
        (partial(write_changed, announce_a_terabyte), r"holds \[2, 9999999, 99999\] values for 2 dates"),
    ],
)
def test_a_broken_meteonet_file_is_named_and_nothing_is_left(tmp_path, write, message):
    raw = tmp_path / "raw"
    write_meteonet(raw / "b.npz", range(50, 80), radar_frames(range(50, 80)))
    write(raw / "a.npz")
    with pytest.raises(InputError, match=message) as caught:
        prepare("meteonet", raw, tmp_path / "out" / "meteo.h5")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: Image.new("RGB", SHAPE[::-1], "red").save(path),
        lambda path: Image.new("I;16", SHAPE[::-1]).save(path),
        lambda path: Image.new("L", (5, 5)).save(path),
    ],
)
def test_a_broken_shanghai_picture_is_named_and_nothing_is_left(shanghai, write):
    write(shanghai.raw / "period_3" / "7.png")
    with pytest.raises(InputError, match=r"period_3.7\.png (cannot be read|is coloured|has \d+ by \d+ pixels)"):
        prepare("shanghai", shanghai.raw, shanghai.out)
    assert [path.name for path in shanghai.out.parent.iterdir()] == ["raw"]


def cikm_samples(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *CIKM_SHAPE), np.uint8)


def test_cikm_comes_back_at_the_chosen_height(tmp_path, caplog):
    train, test = cikm_samples(5), cikm_samples(2)
    write_cikm(tmp_path / "raw", train, test)
    with (tmp_path / "raw" / "train.txt").open("a") as file:
        file.write("\n")  # no sample
    out = tmp_path / "cikm.h5"
    with caplog.at_level(logging.INFO):
        main(["cikm", str(tmp_path / "raw"), str(out), "--level", "3"])
    assert f"{out} is complete: 4 train windows, 2 test windows, 1 valid windows" in caplog.messages
    for split, samples in (("train", train[:4]), ("valid", train[4:]), ("test", test)):
        dataset = RadarH5("cikm", out, split, seq_len=15)
        assert len(dataset) == len(samples)
        for sample, frames in zip(samples, dataset, strict=True):
            stored = frames[~frames.isnan()].reshape(15, 101, 101)
            assert np.array_equal(stored, sample[:, 2] / np.float32(255))


@pytest.mark.parametrize(
    "line",
    ["train_2,1.0,1 2 3", "train_2,1.0,one", "train_2,1.0," + "256 " * 612060, "1 " * 2**22, "\0" * 100],
    ids=["short", "words", "out of range", "endless", "binary"],
)
def test_a_broken_cikm_line_is_named(tmp_path, line):
    write_cikm(tmp_path, np.zeros((1, *CIKM_SHAPE), np.uint8), np.zeros((0, *CIKM_SHAPE), np.uint8))
    with (tmp_path / "train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"Line 2 of .*train\.txt (is not 15 x 4|has values outside)"):
        prepare("cikm", tmp_path, tmp_path / "cikm.h5")


@pytest.mark.parametrize("archive", ["shanghai", "meteonet", "cikm"])
def test_an_empty_or_missing_folder_is_named(tmp_path, archive):
    for raw in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=str(raw)):
            prepare(archive, raw, tmp_path / "out.h5")


def test_an_archive_without_rain_is_refused(shanghai):
    for path in (shanghai.raw / "period_6").iterdir():
        Image.new("L", SHAPE[::-1]).save(path)
    shutil.rmtree(shanghai.raw / "period_5")
    with pytest.raises(InputError, match="no window for the test split"):
        prepare("shanghai", shanghai.raw, shanghai.out)


def test_an_existing_file_is_never_overwritten(shanghai):
    shanghai.out.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        prepare("shanghai", shanghai.raw, shanghai.out)
    assert shanghai.out.read_text() == "precious"


def test_a_folder_in_place_of_the_file_is_not_to_be_deleted(shanghai):
    with pytest.raises(InputError, match=r"exists already; name a file in it, as .*shanghai\.h5"):
        prepare("shanghai", shanghai.raw, shanghai.out.parent)


def test_a_full_disk_is_noticed_before_hdf5_meets_it(shanghai, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(InputError, match=r"cannot write .*shanghai\.h5: No space left"):
        prepare("shanghai", shanghai.raw, shanghai.out)
    assert not shanghai.out.exists()
