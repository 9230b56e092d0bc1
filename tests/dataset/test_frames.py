import os
import pickle
import shutil
import zlib
from datetime import datetime, timedelta, timezone
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from dataset import frames_cache, frames_encoding
from dataset.catalog import SPLITS
from dataset.frames import Runs, latest, open_frames
from dataset.frames_config import read_config
from dataset.frames_encoding import Encoder, Grid
from dataset.frames_names import NamePattern
from dataset.png import read_sequences
from utils.errors import InputError

RESOURCES = Path(__file__).parents[2] / "resources"
START = datetime(2023, 5, 1)
STEP = timedelta(minutes=5)
SETTINGS = {
    "pattern": "%Y/%m/%d/radar_%Y%m%d%H%M.npy",
    "interval": 5,
    "range": [0, 255],
    "units": "VIL byte",
    "thresholds": [16, 74, 133],
    "extent_km": 128,
    "split": {"valid_from": "2023-05-01T02:00", "test_from": "2023-05-01T03:00"},
    "stride": 2,
}


class Archive:
    """A folder of frames to spoil; `frames` maps the number of a frame, from `START` on, to what is stored."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.frames: dict[int, np.ndarray] = {}

    def configure(self, **changes):
        self.settings = {key: value for key, value in (SETTINGS | changes).items() if value is not None}
        (self.folder / "frames.yaml").write_text(yaml.safe_dump(self.settings))
        return self

    def path(self, number: int) -> Path:
        path = self.folder / (START + number * STEP).strftime(self.settings["pattern"])
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, numbers, shape=(6, 8), dtype=np.uint8):
        for number in numbers:
            frame = np.random.default_rng(number).integers(0, 255, shape).astype(dtype)
            self.store(number, frame)
        return self

    def store(self, number: int, frame: np.ndarray):
        self.frames[number], path = frame, self.path(number)
        if path.suffix == ".png":
            Image.fromarray(frame).save(path)
        elif path.suffix == ".npy":
            np.save(path, frame)
        else:
            with h5py.File(path, "w") as file:
                file[self.settings["variable"]] = frame[None]

    def open(self, split="train", img_size=(6, 8), seq_len=4, **options):
        return open_frames(split, self.folder, img_size, seq_len, **options)


@pytest.fixture
def archive(tmp_path) -> Archive:
    """24 frames before 02:00 (training), 12 before 03:00 (validation), 12 after (test), bytes of 6 x 8 pixels."""
    (tmp_path / "radar").mkdir()
    return Archive(tmp_path / "radar").configure().add(range(48))


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
    frames, valid = dataset[0]
    assert valid[0, 0].tolist() == [[True, True, False], [True, True, True]]
    expected = [[0, 9 / 60, 0], [23 / 60, 51 / 60, 1]]
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
            patch.setattr(module, "fine_levels", lambda config: 65535)
        archive.open(img_size=(2, len(just)))
    dataset = archive.open(img_size=(2, len(just)))
    values = dataset.source.scale * dataset[0][0, 0]
    steps = torch.tensor(dataset.source.steps)
    assert (values[0] >= steps).all()
    assert (values[1] < steps).all()


def test_netcdf_attributes_are_used_unless_the_settings_say_otherwise(tmp_path):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="rain", range=[0, 10], thresholds=[1])
    for number in range(4):
        archive.store(number, np.array([[0, 10], [20, -99]], np.int16))
        with h5py.File(archive.path(number), "r+") as file:
            file["rain"].attrs.update({"scale_factor": 0.25, "add_offset": 1.0, "_FillValue": np.int16(-99)})
    frames, valid = archive.open(img_size=2)[0]
    np.testing.assert_allclose(frames[0, 0], [[0.1, 0.35], [0.6, 0]], atol=1e-5)
    assert valid[0, 0].tolist() == [[True, True], [True, False]]
    for number in range(4):
        with h5py.File(archive.path(number), "r+") as file:
            file["rain"].attrs["missing_value"] = np.int16([98, 10])
    assert archive.open(img_size=2)[0][1][0, 0].tolist() == [[True, False], [True, False]]
    for number in range(4):
        with h5py.File(archive.path(number), "r+") as file:
            del file["rain"].attrs["missing_value"]
    archive.configure(**archive.settings, scale=0.5, offset=0)
    np.testing.assert_allclose(archive.open(img_size=2)[0][0][0, 0], [[0, 0.5], [1, 0]], atol=1e-5)


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
            dataset = archive.open(split, img_size=2, seq_len=2)
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
    frames, valid = dataset[0]
    assert frames.shape == valid.shape == (4, 1, 8, 16)
    assert valid[..., :6, :8].all()
    assert valid.sum() == 4 * 6 * 8
    assert not frames[~valid].any()
    assert torch.equal(dataset.grid.crop(frames), archive.open()[0])
    assert dataset.source.extent == 256


def test_larger_frames_shrink_to_fit_and_keep_their_proportions():
    grid = Grid.fitting((565, 784), (128, 128))
    assert (grid.fitted, grid.size, grid.padded) == ((92, 128), (128, 128), True)
    assert Grid.fitting((20, 30), 64).fitted == (20, 30)


def test_a_shrunk_pixel_does_not_depend_on_missing_ones(tmp_path):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.npy", missing=255)
    frame = np.full((8, 8), 51, np.uint8)
    frame[:, 6:] = 255
    for number in range(4):
        archive.store(number, frame)
    frames, valid = archive.open(img_size=4)[0]
    assert valid[0, 0, 0].tolist() == [True, True, True, False]
    assert torch.equal(frames[valid], torch.full_like(frames[valid], 0.2))
    assert not frames[~valid].any()


def test_the_cache_spares_decoding_and_takes_in_what_is_new_or_changed(archive, monkeypatch):
    read, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, time: read.append((time - START) // STEP) or encode(self, time))
    archive.open()
    assert sorted(read) == list(range(48))
    archive.add([48, 60])
    archive.store(2, archive.frames[2] + 1)
    os.utime(archive.path(2), ns=(0, 12345))
    read.clear()
    assert torch.equal(archive.open(stride=1)[2][0, 0], torch.from_numpy(archive.frames[2]).float() / 255)
    assert sorted(read) == [2, 48, 60]
    read.clear()
    archive.open("valid")
    assert read == []
    archive.configure(range=[0, 200]).open()
    assert sorted(set(read)) == sorted(archive.frames)


@pytest.mark.parametrize("batches", [0, 1, 3])
@pytest.mark.parametrize("broken", ["levels", "records"])
def test_a_killed_packing_continues_where_it_stopped(archive, monkeypatch, batches, broken):
    class Killed(BaseException):
        pass

    write, count = frames_cache._write, iter(range(100))

    def write_until_killed(files, *args):
        if next(count) == batches:
            files[broken].write(b"half a row")
            raise Killed
        write(files, *args)

    monkeypatch.setattr(frames_cache, "BATCH", 10)
    with monkeypatch.context() as patch:
        patch.setattr(frames_cache, "_write", write_until_killed)
        with pytest.raises(Killed):
            archive.open()
    read, encode = [], Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, time: read.append(time) or encode(self, time))
    dataset = archive.open("test", stride=1)
    assert len(read) == 48 - 10 * batches
    for index in range(len(dataset)):
        assert torch.equal(dataset[index][0, 0], torch.from_numpy(archive.frames[36 + index]).float() / 255)


def test_rows_lost_from_the_cache_are_decoded_again(archive):
    expected = archive.open("test")[0]
    (file,) = archive.folder.glob("packed/*/levels.bin")
    os.truncate(file, file.stat().st_size - 5)
    dataset = archive.open("test", stride=1)
    assert torch.equal(dataset[0], expected)
    assert torch.equal(dataset[8][3, 0], torch.from_numpy(archive.frames[47]).float() / 255)


def test_settings_and_cache_may_lie_outside_an_archive_that_is_read_only(archive, tmp_path):
    expected = archive.open()[3]
    shutil.rmtree(archive.folder / "packed")
    file = (archive.folder / "frames.yaml").rename(tmp_path / "mine.yaml")
    file.write_text(yaml.safe_dump(archive.settings | {"folder": "radar"}))
    before = set(archive.folder.rglob("*"))
    assert torch.equal(open_frames("train", file, (6, 8), 4, packed_path=tmp_path / "fast")[3], expected)
    assert set(archive.folder.rglob("*")) == before
    (archive.folder / "packed").write_text("a file stands where the folder should")
    with pytest.raises(InputError, match=r"Cannot write the cache .* with --packed_path"):
        open_frames("train", file, (6, 8), 4)


def test_a_cache_that_was_made_anew_is_not_read_under_the_old_settings(archive):
    dataset = archive.open()
    archive.configure(range=[0, 200]).open()
    with pytest.raises(InputError, match="other settings meanwhile"):
        dataset[0]


def test_workers_and_copies_read_the_same(archive):
    dataset = archive.open(img_size=8)
    alone = [dataset[index] for index in range(len(dataset))]
    for (frames, valid), other in zip(alone, DataLoader(dataset, batch_size=None, num_workers=2), strict=True):
        assert torch.equal(frames, other[0])
        assert torch.equal(valid, other[1])
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1][0], alone[1][0])


def wrong_size(path):
    np.save(path, np.zeros((5, 8), np.uint8))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def hostile(path):
    with open(path, "wb") as file:
        np.save(file, np.array([{}], object), allow_pickle=True)


def absurd(path):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 2**20)})


def unended(path):
    path.write_bytes(path.read_bytes().replace(b"}", b"(", 1))


def all_missing(path):
    np.save(path, np.full((6, 8), 255, np.uint8))


@pytest.mark.parametrize("spoil", [wrong_size, truncated, hostile, absurd, unended, all_missing])
def test_a_frame_that_cannot_be_used_is_a_gap_but_stops_an_operational_forecast(archive, spoil, caplog):
    archive.configure(missing=255)
    spoil(archive.path(9))
    dataset = archive.open(stride=1)
    assert "1 gaps (1 frames missing), 1 unusable files" in dataset.describe()
    assert str(archive.path(9)) in caplog.text
    with pytest.raises(InputError, match="radar_202305010045"):
        latest(archive.folder, 5, (6, 8), now=START + 9 * STEP)


def test_declared_sizes_are_checked_before_memory_is_used(tmp_path, monkeypatch):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="v")
    with h5py.File(archive.path(0), "w") as file:
        file.create_dataset("v", (2**20, 2**20), "f8", chunks=(64, 64))
    with pytest.raises(InputError, match="1048576 x 1048576 pixels are more"):
        archive.open()
    archive.configure(pattern="%Y%m%d%H%M.png").add([0], shape=(64, 64))
    monkeypatch.setattr("dataset.frames_files.MAX_PIXELS", 4000)
    with pytest.raises(InputError, match="64 x 64 pixels are more"):
        archive.open()


def classic(path):
    path.write_bytes(b"CDF\x01" + bytes(100))


def elsewhere(path):
    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["v"] = np.zeros((6, 8))
    with h5py.File(path, "w") as file:
        file["v"] = h5py.ExternalLink("other.h5", "v")


def bomb(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("v", (6, 8), "u1", chunks=(6, 8), compression="gzip")
        data.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**28)))


@pytest.mark.parametrize(
    ("write", "message"), [(classic, "NetCDF-3: convert"), (elsewhere, "no dataset v"), (bomb, "48 bytes takes")]
)
def test_hdf5_files_that_are_traps_are_refused(tmp_path, write, message):
    archive = Archive(tmp_path).configure(pattern="%Y%m%d%H%M.nc", variable="/v")
    write(archive.path(0))
    with pytest.raises(InputError, match=message):
        archive.open()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"treshold": 3}, "unknown key treshold"),
        ({"interval": None}, "lacks the key interval"),
        ({"interval": "often"}, "interval must be .* not 'often'"),
        ({"interval": 0.011}, "interval must be"),
        ({"range": [10, 0]}, "range must rise"),
        ({"range": [0, 100, 255]}, "range must be two"),
        ({"thresholds": [30, 20]}, "thresholds must be a rising list"),
        ({"thresholds": [0, 20]}, "inside the range"),
        ({"missing": "none"}, "missing must be"),
        ({"missing": True}, "missing must be"),
        ({"bounds": [0, 1, 2]}, "given together"),
        ({"bounds": [0, 1, 2], "colors": ["#ffffff"]}, "3 bounds need 2 colors"),
        ({"bounds": [0, 1], "colors": ["white"]}, "colors must be"),
        ({"extent_km": -1}, "extent_km must be"),
        ({"scale": 0}, "scale must be"),
        ({"stride": 0}, "stride must be"),
        ({"split": {"valid_from": "2023-05-02", "test_from": "2023-05-01"}}, "split must be two dates"),
        ({"split": {"valid_from": "2023-05-02"}}, "split must be two dates"),
        ({"split": None}, "lacks the key split"),
        ({"pattern": "%Y%m%d.png"}, "does not tell frames 5 minutes apart"),
        ({"pattern": "%Y%m%d%H%M%B.png"}, "has %B"),
        ({"pattern": "../%Y%m%d%H%M.png"}, "below the folder"),
        ({"pattern": "%Y%m%d%H%M.tif"}, "must end in one of"),
        ({"pattern": "%Y%m%d%H%M.nc"}, "need the key variable"),
        ({"variable": "x"}, "variable is for"),
        ({"pattern": "x%Y%m%d%H%M.npy"}, "holds no frame with a name like"),
        ({"interval": 7}, "no 4 frames in a row, 7 minutes apart, in the train split"),
    ],
)
def test_a_mistake_in_the_settings_is_named(archive, changes, message):
    archive.configure(**changes)
    with pytest.raises(InputError, match=message):
        archive.open()


def test_the_example_settings_are_valid():
    config = read_config(RESOURCES / "frames_example.yaml")
    assert config.source(1).thresholds == (10, 20, 30, 40, 50)


def test_names_with_impossible_or_contradictory_times_are_not_frames():
    pattern = NamePattern("%Y/radar_%Y%m%d%H%M.png")
    assert pattern.time_of("2023/radar_202302281455.png") == datetime(2023, 2, 28, 14, 55)
    for name in ("2022/radar_202302281455.png", "2023/radar_202302301455.png", "2023/radar_202302281455.png.part"):
        assert pattern.time_of(name) is None
    assert NamePattern("%Y%m%d_%j_%H%M.png").time_of("20230302_060_1455.png") is None  # day 60 is the 1st of March


def test_the_latest_frames_equal_those_of_training(archive):
    now = START + 11 * STEP + timedelta(minutes=4)
    newest = latest(archive.folder, 4, 8, now=now)
    assert [(time - START) // STEP for time in newest.times] == [9, 10, 11, 12]  # one may be early
    frames, valid = archive.open(img_size=8, stride=1)[9]
    assert torch.equal(newest.frames, frames)
    assert torch.equal(newest.valid, valid)
    assert newest.grid.crop(newest.frames).shape == (4, 1, 6, 8)
    assert newest.source.extent == 128


def test_stale_or_incomplete_input_is_refused(archive):
    stale = r"2023-05-01 03:55 UTC, which is more than 3 intervals \(15 minutes\) ago"
    for late in (50.2, 51):
        with pytest.raises(InputError, match=stale):
            latest(archive.folder, 5, 8, now=START + late * STEP)
    archive.path(44).unlink()
    with pytest.raises(InputError, match=r"radar_202305010340.npy is missing"):
        latest(archive.folder, 5, 8, now=START + 48 * STEP)
    latest(archive.folder, 3, 8, now=START + 48 * STEP)
    with pytest.raises(InputError, match="no frame like"):
        latest(archive.folder, 3, 8, now=START - 2 * STEP)


def test_excluded_frames_count_as_missing(archive):
    (archive.folder / "frames.exclusions.txt").write_text("20230501T035500\tbad\n20230501T033000\tbad\n")
    newest = latest(archive.folder, 4, 8, now=START + 47 * STEP)
    assert newest.times[-1] == START + 46 * STEP
    with pytest.raises(InputError, match=r"0330.npy is excluded by .*frames.exclusions.txt"):
        latest(archive.folder, 5, 8, now=START + 47 * STEP)


def test_frames_that_repeat_are_told_and_a_stuck_radar_is_refused(archive):
    def newest():
        return latest(archive.folder, 3, 8, now=START + 47 * STEP)

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
    assert latest(archive.folder, 3, 8).early in (1, 2)
    assert latest(archive.folder, 3, 8, now=now).early == 0


def test_the_demo_sequences_as_a_folder_of_frames_come_back(tmp_path):
    archive = Archive(tmp_path).configure(pattern="%Y/%m/%d/%H%M.png", stride=25)
    sequences = read_sequences(RESOURCES / "demo_sequences", 5, 20, 128)[:2]
    both = [torch.cat((sequence.inputs, sequence.targets)) for sequence in sequences]
    for day, frames in enumerate(both):
        for number, frame in enumerate((255 * frames[:, 0]).round().byte().numpy()):
            archive.store(288 * day + number, frame)
    dates = {"valid_from": datetime(2023, 5, 2), "test_from": datetime(2023, 5, 3)}
    archive.configure(**archive.settings | {"split": dates})
    for split, expected in zip(("train", "valid"), both, strict=True):
        dataset = archive.open(split, img_size=128, seq_len=25)
        assert len(dataset) == 1
        assert torch.equal(dataset[0], expected)
    for sequence, shrunk in zip(
        read_sequences(RESOURCES / "demo_sequences", 5, 20, 64), ("train", "valid"), strict=False
    ):
        assert torch.equal(archive.open(shrunk, img_size=64, seq_len=25)[0][:5], sequence.inputs)
