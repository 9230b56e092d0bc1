"""Frames, files and settings that cannot be used."""

import zlib
from datetime import datetime

import h5py
import numpy as np
import pytest

from dataset.frames.archive.names import NamePattern
from dataset.frames.config import FramesConfig, read_config
from dataset.frames.latest import latest
from tests.dataset.archive import START, STEP, Archive, absurd, all_missing, hostile, truncated, unended, wrong_size
from tests.tiny import ROOT
from utils.errors import InputError


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
    monkeypatch.setattr("dataset.frames.readers.plain.MAX_PIXELS", 4000)
    with pytest.raises(InputError, match="64 x 64 pixels; use at most 4000"):
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
        ({"interval": 0.011}, "interval must be"),
        ({"thresholds": [0, 20]}, "inside the range"),
        ({"bounds": [0, 1, 2], "colors": ["#ffffff"]}, "3 bounds need 2 colors"),
        ({"pattern": "%Y%m%d.png"}, "does not tell frames 5 minutes apart"),
        ({"pattern": "../%Y%m%d%H%M.png"}, "below the folder"),
        ({"interval": 7}, "no 4 frames in a row, 7 minutes apart, in the train split"),
    ],
)
def test_a_mistake_in_the_settings_is_named(archive, changes, message):
    archive.configure(**changes)
    with pytest.raises(InputError, match=message):
        archive.open()


def test_every_key_refuses_a_value_of_another_kind(archive):
    for key in sorted(FramesConfig.__dataclass_fields__.keys() - {"file"}):
        archive.configure(**{key: {"a": ["b"]}})
        with pytest.raises(InputError, match=rf"frames\.yaml: {key} "):
            archive.open()


def test_the_example_settings_are_valid():
    config = read_config(ROOT / "resources" / "frames_example.yaml")
    assert config.source(1).thresholds == (10, 20, 30, 40, 50)


def test_names_with_impossible_or_contradictory_times_are_not_frames():
    pattern = NamePattern("%Y/radar_%Y%m%d%H%M.png")
    assert pattern.time_of("2023/radar_202302281455.png") == datetime(2023, 2, 28, 14, 55)
    for name in ("2022/radar_202302281455.png", "2023/radar_202302301455.png", "2023/radar_202302281455.png.part"):
        assert pattern.time_of(name) is None
    assert NamePattern("%Y%m%d_%j_%H%M.png").time_of("20230302_060_1455.png") is None  # day 60 is the 1st of March
