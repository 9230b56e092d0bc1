"""Forecast files: what GIS and checkers of conventions find in them."""

from datetime import datetime, timedelta

import numpy as np
import pytest
import rasterio
import rasterio.warp
import torch
import xarray
import yaml
from PIL import Image
from rasterio.transform import from_origin

from dataset.frames.complete import complete_config
from diffcast.forecaster import Architecture
from diffcast.forecasting import operational
from diffcast.forecasting.forecasts import ForecastSettings
from diffcast.forecasting.operational import Operation
from diffcast.forecasting.output import FORMATS
from tests.tiny import BACKBONES
from utils.errors import InputError

START, STEP = datetime(2023, 5, 1, 12), timedelta(minutes=15)
SHAPE = (20, 28)  # pixels of a frame; the model was trained on crops of 16 x 16
ARCHITECTURE = Architecture(
    "simvp", True, (1, 16, 16), frames_out=7, backbone_options=BACKBONES["simvp"], dim=8, dim_mults=(1, 2)
)
CONFIG = {"name": "reflectivity", "interval": 15, "range": [0, 60], "thresholds": [10, 20, 30]}
PLACES = {  # reference system; outer corner in the north-west; size of a pixel
    "projected": ("EPSG:32635", (300000.0, 7000000.0), (2000.0, 1000.0)),
    "geographic": ("EPSG:4326", (20.0, 62.0), (0.02, 0.01)),
    "polar": ("+proj=stere +lat_0=90 +lon_0=20 +lat_ts=60 +R=6371288", (200000.0, -3000000.0), (1000.0, 1000.0)),
    "nowhere": (None, None, None),
}
ABOUT = {
    "institution": "Example Weather Service",
    "license": "CC BY 4.0",
    "naming_authority": "org.example",
    **{"creator_email": "radar@example.org", "creator_url": "https://example.org"},
}
UNNAMED = "exceedance_probability"  # CF has standard names for probabilities of two quantities alone, none of them ours


def frame(number: int) -> np.ndarray:
    stored = np.random.default_rng(number).integers(0, 60, SHAPE).astype(np.uint8)
    stored[:3, :4] = 255
    return stored


def radar(folder, place: str, **changes):
    """A folder of five frames, as GeoTIFF where they have coordinates and else as PNG."""
    crs, corner, pixel = PLACES[place]
    folder.mkdir()
    settings = CONFIG | {"pattern": f"%Y%m%d%H%M.{'tif' if crs else 'png'}", "units": "dBZ", "about": ABOUT}
    settings |= {"missing": 255} | ({} if crs else {"extent_km": 56})
    (folder / "frames.yaml").write_text(yaml.safe_dump(settings | changes))
    for number in range(5):
        path = folder / f"{START + number * STEP:%Y%m%d%H%M}.{'tif' if crs else 'png'}"
        if crs is None:
            Image.fromarray(frame(number)).save(path)
            continue
        about = {"height": SHAPE[0], "width": SHAPE[1], "count": 1, "dtype": "uint8", "crs": crs}
        with rasterio.open(path, "w", driver="GTiff", transform=from_origin(*corner, *pixel), **about) as file:
            file.write(frame(number), 1)
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ARCHITECTURE.build().eval()


@pytest.fixture
def forecast(model, tmp_path, monkeypatch):
    """Forecast from a folder to a file."""
    placed = []  # coordinates of the pictures
    monkeypatch.setattr(operational, "draw_case", lambda *_, grid, place: placed.append(place))
    (tmp_path / "out").mkdir()

    def run(folder, kind="netcdf", native=True):
        settings = ForecastSettings(members=2, sampling_steps=1)
        about = {"suffix": FORMATS[kind], "native": native}
        config = complete_config(folder)
        operation = Operation(model, "simvp", config, settings, tmp_path / "out", "tiny.safetensors", **about)
        return operation.run(START + 4 * STEP)

    run.placed = placed
    return run


def values(place: str) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of the pixels."""
    _, (left, top), (width, height) = PLACES[place]
    return left + width * (np.arange(SHAPE[1]) + 0.5), top - height * (np.arange(SHAPE[0]) + 0.5)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("place", ["projected", "geographic", "polar"])
def test_gis_and_xarray_place_the_forecast_where_the_frames_are(place, kind, forecast, tmp_path):
    path = forecast(radar(tmp_path / "radar", place), kind)
    dataset = xarray.open_dataset(path, decode_coords="all", engine={"netcdf": "h5netcdf", "zarr": "zarr"}[kind])
    y, x = dataset["forecast"].dims[-2:]
    expected_x, expected_y = values(place)
    np.testing.assert_array_equal(dataset[x], expected_x)
    np.testing.assert_array_equal(dataset[y], expected_y)
    np.testing.assert_array_equal(forecast.placed[0].x, expected_x)
    np.testing.assert_array_equal(forecast.placed[0].y, expected_y)
    crs = rasterio.crs.CRS.from_wkt(dataset["crs"].attrs["crs_wkt"])
    assert crs == rasterio.crs.CRS.from_string(PLACES[place][0])
    latitude, longitude = xarray.broadcast(dataset["latitude"], dataset["longitude"])
    east, north = np.meshgrid(expected_x, expected_y)
    expected = rasterio.warp.transform(PLACES[place][0], "EPSG:4326", east.ravel(), north.ravel())
    for found, degrees in zip((longitude, latitude), expected, strict=True):
        np.testing.assert_allclose(found.values.ravel(), degrees, atol=1e-5)
    if kind == "netcdf":
        with (
            rasterio.open(tmp_path / "radar" / "202305011200.tif") as frames,
            rasterio.open(f"netcdf:{path}:forecast_mean") as mean,
        ):
            assert mean.crs == frames.crs
            np.testing.assert_allclose(mean.transform, frames.transform)
            assert mean.shape == SHAPE


def test_netcdf_and_zarr_hold_the_same(forecast, tmp_path):
    folder = radar(tmp_path / "radar", "projected")
    netcdf = xarray.open_dataset(forecast(folder), decode_coords="all")
    zarr = xarray.open_zarr(forecast(folder, "zarr"), decode_coords="all")
    xarray.testing.assert_allclose(netcdf.load(), zarr.load(), rtol=1e-6)
    assert zarr.attrs.keys() == netcdf.attrs.keys()
    assert zarr["forecast"].encoding["chunks"] == netcdf["forecast"].encoding["chunksizes"] == (1, 1, *SHAPE)
    assert zarr["forecast"].attrs == netcdf["forecast"].attrs
    assert np.isnan(zarr["forecast"][:, :, :3, :4]).all()
    assert int(np.isnan(zarr["forecast"]).sum()) == 2 * 7 * 3 * 4


def test_a_shrunk_forecast_has_the_coordinates_of_its_pixels(forecast, tmp_path):
    dataset = xarray.open_dataset(forecast(radar(tmp_path / "radar", "projected"), native=False))
    assert dataset["forecast"].shape[-2:] == (11, 16)
    _, (left, top), (width, height) = PLACES["projected"]
    np.testing.assert_allclose(dataset["x"], left + width * SHAPE[1] / 16 * (np.arange(16) + 0.5))
    np.testing.assert_allclose(dataset["y"], top - height * SHAPE[0] / 11 * (np.arange(11) + 0.5))


def test_windows_hold_the_highest_of_their_lead_times(forecast, tmp_path):
    dataset = xarray.open_dataset(forecast(radar(tmp_path / "radar", "projected")), decode_timedelta=False)
    assert dataset["forecast_window"].values.tolist() == [30, 60, 100]
    for window, bounds in zip((30, 60, 100), dataset["forecast_window_bounds"].values.tolist(), strict=True):
        assert bounds == [0, window]
        members = dataset["forecast"].where(dataset["forecast_period"] <= window, drop=True).max("time", skipna=False)
        for threshold in (10, 20, 30):
            found = dataset["exceedance_probability_within"].sel(forecast_window=window, threshold=threshold)
            expected = (members >= threshold - 1e-3).where(members.notnull()).mean("realization")
            np.testing.assert_allclose(found, expected, atol=1e-4)


def complaints(path) -> set[str]:
    """What the compliance checker finds of high or medium priority."""
    runner = pytest.importorskip("compliance_checker.runner")
    runner.CheckSuite.load_all_available_checkers()
    suite = runner.CheckSuite()
    results = suite.run_all(suite.load_dataset(str(path)), ["cf:1.8", "acdd"])
    assert not any(errors for _, errors in results.values())
    found = [one for groups, _ in results.values() for one in groups if one.weight >= 2 and not _passed(one.value)]
    return {f"{one.name}: {text}" for one in found for text in one.msgs}


def _passed(value) -> bool:
    return value[0] == value[1] if isinstance(value, tuple) else bool(value)


@pytest.mark.parametrize("place", PLACES)
def test_the_compliance_checker_finds_nothing_but_what_cannot_be_known(place, forecast, tmp_path):
    unnamed = {f'variable "{UNNAMED}{end}" missing the following attributes:: standard_name' for end in ("", "_within")}
    found = complaints(forecast(radar(tmp_path / "radar", place))) - unnamed
    if place == "nowhere":  # frames without coordinates have no extent in degrees
        found = {text for text in found if "geospatial" not in text and "recommended order" not in text}
    assert found == set()


def test_frames_yaml_and_frames_say_who_made_the_frames(forecast, tmp_path):
    said = xarray.open_dataset(forecast(radar(tmp_path / "radar", "projected"))).attrs
    assert {key: said[key] for key in ABOUT} == ABOUT
    assert said["publisher_email"] == "radar@example.org"
    assert "tiny.safetensors" in said["source"]
    assert said["time_coverage_start"] == "2023-05-01T13:15:00Z"
    assert said["time_coverage_end"] == "2023-05-01T14:45:00Z"


@pytest.mark.parametrize("about", ["a text", {"not a name": "text"}, {"institution": 5}])
def test_impossible_attributes_are_refused(about, tmp_path):
    with pytest.raises(InputError, match="about must be attributes of forecast files"):
        complete_config(radar(tmp_path / "radar", "projected", about=about))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_forecast_is_complete_or_absent(kind, forecast, tmp_path, monkeypatch):
    folder = radar(tmp_path / "radar", "projected")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device"):
        forecast(folder, kind)
    assert list((tmp_path / "out").iterdir()) == []
