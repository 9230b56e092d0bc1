"""Frames in Zarr stores, as xarray reads them; damaged and hostile stores are refused."""

import json
from datetime import datetime, timedelta

import numcodecs
import numpy as np
import pyproj
import pytest
import torch
import xarray
import yaml

from dataset.frames.archive import zarr_array
from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import moment
from dataset.frames.complete import complete_config
from dataset.frames.config import read_config
from dataset.frames.latest import latest
from dataset.frames.reader import open_frames
from tests.dataset.archive import START, STEP
from utils.errors import InputError

codecs = pytest.importorskip("zarr.codecs")

TIMES, SHAPE = 9, (37, 53)
SETTINGS = {"store": "radar.zarr", "interval": 5, "range": [0, 60], "thresholds": [10, 20]}
SETTINGS["split"] = {"valid_from": "2023-05-02", "test_from": "2023-05-03"}
PACKED = {"dtype": "int16", "scale_factor": 0.01, "add_offset": 5.0, "_FillValue": -32768}


def radar(first=0, times=TIMES) -> xarray.Dataset:
    """Reflectivity on a grid whose y rises, with missing pixels."""
    rng = np.random.default_rng(first)
    values = np.where(rng.random((times, *SHAPE)) < 0.1, np.nan, rng.uniform(0, 60, (times, *SHAPE)))
    about = {"units": "dBZ", "grid_mapping": "crs", "standard_name": "equivalent_reflectivity_factor"}
    place = {"units": "m", "standard_name": "projection_y_coordinate"}
    coordinates = {
        "time": [np.datetime64(START + (first + number) * STEP, "s") for number in range(times)],
        "y": ("y", 1000.0 * np.arange(SHAPE[0]), place),
        "x": ("x", 1000.0 * np.arange(SHAPE[1]), place | {"standard_name": "projection_x_coordinate"}),
        "crs": ((), 0, pyproj.CRS("EPSG:3067").to_cf()),
    }
    return xarray.Dataset({"dbz": (("time", "y", "x"), values, about)}, coordinates, {"license": "CC BY 4.0"})


def write(folder, data=None, zarr_format=3, chunks=(1, *SHAPE), times="minutes since 2023-05-01", **encoding):
    encoding = {"dbz": {"chunks": chunks} | encoding, "time": {"units": times}}
    (radar() if data is None else data).to_zarr(
        folder / "radar.zarr", mode="w", zarr_format=zarr_format, encoding=encoding, consolidated=False
    )
    return configure(folder)


def configure(folder, **changes):
    (folder / "frames.yaml").write_text(yaml.safe_dump(SETTINGS | changes))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("zarr_format", "encoding"),
    [
        (2, {}),
        (2, {"compressors": numcodecs.Zstd(), "chunks": (4, 20, 30)} | PACKED),
        (2, {"compressors": numcodecs.GZip(), "dtype": ">f4"}),
        (2, {"compressors": numcodecs.LZ4()}),
        (2, {"compressors": numcodecs.Zlib()} | PACKED),
        (3, PACKED),
        (3, {"compressors": (codecs.BloscCodec(),), "dtype": "float32"}),
        (3, {"compressors": (codecs.GzipCodec(),), "chunks": (4, 20, 30)}),
        (3, {"compressors": None} | PACKED),
        (3, {"filters": (codecs.TransposeCodec(order=(2, 0, 1)),), "chunks": (4, 20, 30)}),
        (3, {"compressors": (codecs.ZstdCodec(), codecs.Crc32cCodec())}),
        (3, {"shards": (4, 40, 60), "chunks": (2, 20, 30)}),
    ],
    ids=[*map(str, range(12))],
)
def test_frames_times_and_coordinates_are_those_of_xarray(tmp_path, zarr_format, encoding):
    config = complete_config(write(tmp_path, zarr_format=zarr_format, **encoding))
    archive, expected = archive_of(config), xarray.open_zarr(tmp_path / "radar.zarr", consolidated=False)
    times = [moment(time) for time in archive.times()]
    assert times == expected["time"].values.astype("datetime64[s]").tolist()
    for number, time in enumerate(times):
        frame = archive.read(time)
        np.testing.assert_allclose(frame.values, expected["dbz"].values[number, ::-1], rtol=1e-6)
    place = frame.metadata.georeference
    np.testing.assert_array_equal(place.x, expected["x"])
    np.testing.assert_array_equal(place.y, expected["y"][::-1])
    assert pyproj.CRS(place.crs).coordinate_operation == pyproj.CRS("EPSG:3067").coordinate_operation
    assert (config.units, config.extent_km, frame.metadata.format) == ("dBZ", 53, "zarr")
    assert frame.metadata.credits == (("license", "CC BY 4.0"),)


def test_a_store_trains_forecasts_and_grows(tmp_path):
    write(tmp_path)
    frames = open_frames("train", tmp_path, SHAPE, 4)
    values = radar()["dbz"].values[:4, ::-1] / 60
    np.testing.assert_allclose(frames[0][:, 0], values, atol=1e-4)
    radar(TIMES, 3).to_zarr(tmp_path / "radar.zarr", append_dim="time", consolidated=False)
    now = START + (TIMES + 2) * STEP
    newest = latest(tmp_path, 5, None, now=now)
    assert newest.times[-1] == now
    np.testing.assert_allclose(newest.frames[-1, 0], radar(TIMES, 3)["dbz"].values[-1, ::-1] / 60, atol=1e-4)
    longer = open_frames("train", tmp_path, SHAPE, 4, 1)
    assert len(longer) == 9
    assert torch.equal(longer[0].nan_to_num(), frames[0].nan_to_num())


def test_frames_of_a_chunk_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    archive, reads = archive_of(read_config(write(tmp_path, chunks=(4, *SHAPE)))), []
    read = zarr_array.ZarrArray.read
    monkeypatch.setattr(zarr_array.ZarrArray, "read", lambda *words: reads.append(words[1:]) or read(*words))
    for number in range(TIMES):
        archive.read(START + number * STEP)
    assert [span for span in reads if span[1] <= TIMES and span[1] - span[0] <= 4] == [(0, 4), (4, 8), (8, 9)]
    changed = radar()
    changed["dbz"][8] = 7.0
    write(tmp_path, changed, chunks=(4, *SHAPE))
    assert (archive.read(START + 8 * STEP).values == 7).all()


def test_times_that_do_not_rise_are_left_out_with_a_warning(tmp_path, caplog):
    data = radar()
    data = data.assign_coords(time=data["time"].where(np.arange(TIMES) != 5, data["time"][2]))
    archive = archive_of(read_config(write(tmp_path, data)))
    assert archive.times().tolist() == [epoch(number) for number in range(TIMES) if number != 5]
    assert "1 frames in" in caplog.text
    expected = data["dbz"].values[6, ::-1]
    np.testing.assert_allclose(archive.read(START + 6 * STEP).values, expected)


def epoch(number) -> int:
    return int((START + number * STEP - datetime(1970, 1, 1)) / timedelta(seconds=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "%Y%m%d%H%M.npy"}, "store has its own times and format; leave out pattern"),
        ({"timezone": "Europe/Helsinki"}, "store has its own times"),
        ({"store": None}, "lacks the key pattern"),
        ({"store": "nothing"}, "nothing is not the folder of a Zarr store"),
        ({"variable": "rain"}, "radar.zarr cannot be used .it is not an array of Zarr"),
        ({"variable": "x"}, "its x is not of the axes time, y and x"),
        ({"format": "odim"}, "store has its own times and format"),
        ({"units": "mm/h"}, "units are dBZ there but mm/h"),
    ],
)
def test_settings_that_contradict_a_store_are_refused(tmp_path, changes, message):
    write(tmp_path)
    settings = {key: value for key, value in (SETTINGS | changes).items() if value is not None}
    (tmp_path / "frames.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match=message):
        complete_config(tmp_path)


def test_two_arrays_that_may_be_the_frames_are_named(tmp_path):
    data = radar()
    write(tmp_path, data.assign(rain=data["dbz"]))
    with pytest.raises(InputError, match="dbz, rain of its arrays can be the frames; give the key variable"):
        complete_config(tmp_path)
    complete_config(configure(tmp_path, variable="rain"))


def bomb(content):
    """A chunk of zeros that inflates to 64 MiB."""
    return lambda path: path.write_bytes(content(bytes(2**26)))


BOMBS = {
    "gzip": (codecs.GzipCodec(), bomb(lambda zeros: numcodecs.GZip().encode(zeros))),
    "zstd": (codecs.ZstdCodec(), bomb(lambda zeros: numcodecs.Zstd().encode(zeros))),
    "blosc": (codecs.BloscCodec(), bomb(lambda zeros: numcodecs.Blosc().encode(zeros))),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_that_inflates_to_more_than_declared_is_refused(tmp_path, name):
    codec, write_bomb = BOMBS[name]
    archive = archive_of(read_config(write(tmp_path, compressors=(codec,))))
    write_bomb(tmp_path / "radar.zarr/dbz/c/3/0/0")
    with pytest.raises(InputError, match=r"T00:15:00 cannot be used .a chunk of 15688 bytes (inflates|takes)"):
        archive.read(START + 3 * STEP)
    archive.read(START + 4 * STEP)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_type": "string"}, "its values are string, not plain numbers"),
        ({"shape": [TIMES, 2**20, 2**20]}, "has too many pixels"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [9, 2**13, 2**13]}}}, "too large or too"),
        ({"codecs": [{"name": "bytes"}, {"name": "pickle"}]}, "its codecs pickle are not supported"),
        ({"codecs": 3}, "the metadata of dbz are not those of an array of numbers"),
        ({"dimension_names": ["../time", "y", "x"]}, "is not of the axes time, y and x"),
    ],
    ids=str,
)
def test_metadata_are_checked_before_memory_is_used(tmp_path, changes, message):
    write(tmp_path)
    path = tmp_path / "radar.zarr/dbz/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        complete_config(configure(tmp_path, variable="dbz"))
