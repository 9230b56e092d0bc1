"""`diffcast.pysteps.forecast`, called as a method of pysteps, and pysteps given what it returns."""

from dataclasses import replace
from datetime import datetime

import numpy as np
import pytest
import torch

import diffcast as dc
from dataset.source import SHANGHAI
from dataset.transform import dbz
from diffcast.evaluation.results import describe_source
from diffcast.pysteps import forecast
from models.persistence import Persistence
from tests.tiny import tiny_architecture
from utils.errors import InputError
from utils.weights import save_weights

RAIN = replace(SHANGHAI, name="rain", units="mm/h", scale=60.0, interval=5.0, transform=dbz("mm/h", 5))
METADATA = {
    "projection": "+proj=laea +lat_0=55 +lon_0=10 +x_0=0 +y_0=0 +ellps=WGS84 +units=m",
    **{"x1": 0.0, "y1": 0.0, "x2": 20000.0, "y2": 16000.0, "xpixelsize": 1000.0, "ypixelsize": 1000.0},
    **{"cartesian_unit": "m", "yorigin": "upper", "institution": "test", "unit": "mm/h", "transform": None},
    **{"accutime": 5, "threshold": 0.1, "zerovalue": 0.0},
}


def rain(fields=6, height=16, width=20):
    return np.random.default_rng(0).gamma(0.5, 4, (fields, height, width))


@pytest.fixture
def persistence():
    return Persistence((1, 16, 16), frames_in=5, frames_out=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny DiffCast of rain rates in a file that says so."""
    architecture = tiny_architecture("convgru", use_diff=True)
    torch.manual_seed(0)
    model = architecture.build()
    metadata = {"architecture": architecture.to_metadata(), "source": describe_source(RAIN, model)}
    path = tmp_path_factory.mktemp("weights") / "rain.safetensors"
    save_weights(path, model.state_dict(), metadata)
    return path


@pytest.fixture(scope="module")
def ensemble(weights):
    """Three members of four fields in mm/h."""
    return forecast(rain(), None, 4, model=weights, members=3, sampling_steps=1)


def test_a_deterministic_forecast_has_the_units_and_the_gaps_of_the_input(persistence):
    precip = rain()
    precip[:, 0] = np.nan
    precip[-1, 1, :3] = 100, 0, -np.inf
    made = forecast(precip, np.zeros((2, 16, 20)), 3, model=persistence, source=RAIN)
    assert made.shape == (3, 16, 20)
    expected = np.clip(precip[-1], 0, 60)
    np.testing.assert_allclose(made, np.repeat(expected[None], 3, axis=0), rtol=1e-3, atol=1e-3)
    masked = forecast(np.ma.masked_invalid(np.where(np.isinf(precip), 0, precip)), None, 3, persistence, source=RAIN)
    np.testing.assert_array_equal(masked, made)


def test_reflectivity_goes_through_unchanged(persistence):
    dbz = np.full((5, 16, 20), 37.5)
    metadata = {**METADATA, "unit": "dBZ", "transform": "dB"}
    made = forecast(dbz, None, 1, model=persistence, source=SHANGHAI, metadata=metadata)
    np.testing.assert_allclose(made, 37.5, rtol=1e-6)


def test_listed_time_steps_are_those_of_the_whole_forecast(weights, ensemble):
    assert ensemble.shape == (3, 4, 16, 20)
    assert not np.array_equal(ensemble[0], ensemble[1])
    model = dc.load(weights, device="cpu")
    some = forecast(rain(), None, [1, 4], model=model, members=3, sampling_steps=1, metadata=METADATA)
    np.testing.assert_array_equal(some, ensemble[:, [0, 3]])
    one = forecast(rain(), None, np.int64(1), model=model, sampling_steps=1)
    assert one.shape == (1, 1, 16, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": 5}, "timesteps goes to 5, but the model forecasts 4 fields"),
        ({"timesteps": [2, 1]}, r"ascending whole numbers from 1 up, not \[2, 1\]"),
        ({"timesteps": [0.5, 1]}, "ascending whole numbers"),
        ({"timesteps": 0}, "ascending whole numbers"),
        ({"precip": rain()[:4]}, r"shape \(n, y, x\) with n >= 5, not \(4, 16, 20\)"),
        ({"precip": rain()[0]}, r"not \(16, 20\)"),
        ({"source": None}, "does not say what its frames stand for"),
        ({"metadata": {**METADATA, "unit": "mm"}}, "precip is in mm, but the model was trained on mm/h"),
        ({"metadata": {**METADATA, "transform": "dB"}}, "has the transform dB, not None"),
        ({"metadata": {**METADATA, "yorigin": "lower"}}, r"from south to north .* precip\[:, ::-1\]"),
        (
            {"metadata": {**METADATA, "unit": "mm"}, "source": replace(RAIN, units="mm", interval=10.0)},
            "rain of 5 minutes, but the model was trained on that of 10",
        ),
        ({"members": 2}, "leave out members"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ", ".join(value),
)
def test_what_does_not_fit_is_refused_in_one_sentence(changes, message, persistence):
    with pytest.raises(InputError, match=message):
        forecast(**{"precip": rain(), "velocity": None, "timesteps": 2, "model": persistence, "source": RAIN} | changes)


@pytest.mark.parametrize("spoilt", ["scale", "transform", "all"])
def test_a_checkpoint_that_lies_about_its_frames_is_refused(spoilt, persistence):
    described = describe_source(RAIN, persistence)
    lies = {"scale": {"scale": float("nan")}, "transform": {"transform": {"c": 1}}}
    persistence.trained_on = [] if spoilt == "all" else described | lies[spoilt]
    with pytest.raises(InputError, match="does not say what its frames stand for"):
        forecast(rain(), None, 2, model=persistence)


def test_exporters_of_pysteps_write_it(ensemble, tmp_path):
    exporters = pytest.importorskip("pysteps.io.exporters")
    pytest.importorskip("netCDF4")
    xarray = pytest.importorskip("xarray")
    start = datetime(2023, 5, 1, 12)
    exporter = exporters.initialize_forecast_exporter_netcdf(
        str(tmp_path), "forecast", start, 5, 4, (16, 20), METADATA, n_ens_members=3
    )
    exporters.export_forecast_dataset(ensemble, exporter)
    exporters.close_forecast_files(exporter)
    with xarray.open_dataset(next(tmp_path.glob("*.nc"))) as written:
        np.testing.assert_array_equal(written["precip_intensity"].values, ensemble)
        assert written["y"][0] > written["y"][-1]
        assert written["time"].values[-1] == np.datetime64("2023-05-01T12:20")


def test_verification_and_statistics_of_pysteps_take_it(ensemble):
    probscores = pytest.importorskip("pysteps.verification.probscores")
    from pysteps.postprocessing import ensemblestats
    from pysteps.verification import ensscores

    observed = rain(fields=4)
    scores, scale = dc.Scores(100.0, [0.1, 1.0], leads=4, members=3), 100
    frames = (torch.from_numpy(one).float() / scale for one in (ensemble[None, :, :, None], observed[None, :, None]))
    scores.update(*frames)
    assert probscores.CRPS(ensemble, observed) == pytest.approx(scale * scores.compute()["crps"], rel=1e-5)
    np.testing.assert_allclose(ensemblestats.mean(ensemble[:, 0]), ensemble[:, 0].mean(axis=0), rtol=1e-5)
    assert ensemblestats.excprob(ensemble[:, 0], 1.0) == pytest.approx((ensemble[:, 0] >= 1).mean(axis=0))
    assert ensscores.rankhist(ensemble[:, 0], observed[0], X_min=0.1).sum() == pytest.approx(1)
    assert ensscores.ensemble_skill(ensemble[:, 0], observed[0], "RMSE") > 0


def test_blending_of_pysteps_takes_it_for_the_nowcast(ensemble, tmp_path, monkeypatch):
    blending = pytest.importorskip("pysteps.blending.steps")
    from pysteps.utils.transformation import dB_transform

    def decibels(rates):
        return dB_transform(rates, threshold=0.1, zerovalue=-15.0)[0]

    monkeypatch.chdir(tmp_path)
    precip, model = rain(), np.full((1, 5, 16, 20), 2.0)
    model[..., ::2, ::3] = 8
    nowcast = np.concatenate([precip[-1][None, None], ensemble[:1]], axis=1)
    blended = blending.forecast(
        precip=decibels(precip[-3:]),
        precip_nowcast=decibels(nowcast),
        precip_models=decibels(model),
        velocity=np.zeros((2, 16, 20)),
        velocity_models=np.zeros((1, 5, 2, 16, 20)),
        timesteps=4,
        timestep=5,
        issuetime=datetime(2023, 5, 1),
        n_ens_members=1,
        n_cascade_levels=3,
        precip_thr=-10.0,
        kmperpixel=1.0,
        nowcasting_method="external_nowcast",
        noise_method=None,
        vel_pert_method=None,
        mask_method=None,
        probmatching_method=None,
        outdir_path_skill=str(tmp_path),
        seed=0,
    )
    assert blended.shape == (1, 4, 16, 20)
    first, nowcast, model = (one.ravel() for one in (blended[0, 0], decibels(ensemble[0, 0]), decibels(model[0, 1])))
    assert np.corrcoef(first, nowcast)[0, 1] > np.corrcoef(first, model)[0, 1]
