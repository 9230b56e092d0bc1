"""Operational forecasts from the newest frames of a folder.

Each forecast becomes a NetCDF file and pictures.

The files follow the CF conventions, https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset.frames.config import FramesConfig
from dataset.frames.latest import Latest, latest
from dataset.frames.names import seconds
from dataset.source import Source
from dataset.units import same_units
from diffcast.evaluation.results import data_differences, describe_source
from diffcast.forecasting.forecasts import ForecastSettings, check_members, forecast_all
from diffcast.forecasting.pictures import draw_case, exceedance
from diffcast.loading import generators
from utils.errors import InputError
from utils.files import Dispensable
from utils.netcdf import Variable, write_netcdf
from utils.provenance import provenance

LOG = logging.getLogger(__name__)
LEVELS, FILL = 32000, np.int16(-32768)  # of packed values: the range of the frames has so many steps
STANDARD_NAMES = {"dBZ": "equivalent_reflectivity_factor", "mm/h": "lwe_precipitation_rate"}
EPOCH = {"units": "seconds since 1970-01-01 00:00:00", "calendar": "standard"}


@dataclass(frozen=True)
class Operation:
    """Settings and methods of operational forecasts."""

    model: nn.Module  # a forecaster of frames with one channel, where and how it shall run
    name: str  # of the forecaster in pictures
    config: FramesConfig  # of the folder that the frames arrive in
    settings: ForecastSettings
    folder: Path  # of the results
    weights: str  # which they are, for the NetCDF files
    max_age: float = 3  # intervals that the newest frame may be old
    trained: object = None  # what the weights say about the frames they were trained on, as `describe_source` does
    native: bool = False  # forecast the grid of the files, as weights trained on crops of it can

    def __post_init__(self):
        if self.model.frame_shape[0] != 1:
            raise InputError(f"{self.weights} is for frames with {self.model.frame_shape[0]} channels; radar has one.")
        check_members(self.model, self.settings)
        found = describe_source(self.config.source(widening=1), self.model)
        if differences := data_differences(self.trained, found):
            raise InputError(
                f"{self.weights} was trained on other data than {self.config.file} describes (weights / folder): "
                f"{'; '.join(differences)}."
            )

    def run(self, now: datetime | None = None) -> Path:
        """Forecast from the newest frames, and return the NetCDF file.

        `now` is the present in UTC, by default that of the clock.

        Raises `InputError` if they are too old or not complete, or if they have been forecast from before.
        """
        newest = self.newest(now)
        path = self.path_of(newest)
        if path.exists():
            raise InputError(f"{path} exists already; delete it, choose another --out, or wait for the next frame.")
        self.forecast(newest, path)
        return path

    def newest(self, now: datetime | None = None) -> Latest:
        """The newest frames as of `now`, which the model observes."""
        size = None if self.native else self.model.frame_shape[1:]
        return latest(self.config, self.model.frames_in, size, now, self.max_age)

    def path_of(self, newest: Latest) -> Path:
        """The NetCDF file of the forecast from these frames."""
        return self.folder / f"forecast_{newest.times[-1]:%Y%m%dT%H%M%SZ}.nc"

    def forecast(self, newest: Latest, path: Path) -> None:
        """Forecast, and write the NetCDF file and pictures next to it.

        Pixels that no observed frame covers are missing in both.
        """
        for doubt in self.doubts(newest):
            LOG.warning("%s", doubt)
        begin, crop = time.monotonic(), newest.grid.crop
        device = next(self.model.parameters()).device
        draws = generators(device, self.settings.seed, 6, [seconds(newest.times[-1])])
        nowcast = partial(self.nowcasts, newest)
        frames = newest.frames.to(device)[None]
        forecasts = forecast_all(self.model, frames, self.settings, draws, self.name, nowcast=nowcast)
        observed = crop(newest.frames)
        valid = ~observed.isnan()
        unseen = ~valid.any(0)
        forecasts = {name: crop(frames[0]).cpu().masked_fill(unseen, torch.nan) for name, frames in forecasts.items()}
        members = forecasts[self.name][:, :, 0]
        variables = coordinates(newest, self.config, self.model.frames_out, len(members))
        variables |= quantities(members, valid.sum(0)[0], newest.source)
        write_netcdf(path, variables, self.attributes())
        with Dispensable(f"pictures of {path}"):
            draw_case(
                self.folder, path.stem, observed, None, forecasts, newest.source, _pixel_km(newest), newest.times[-1]
            )
        LOG.info("%d members in %.1f s: %s", len(members), time.monotonic() - begin, path)

    def nowcasts(self, newest: Latest) -> dict[str, Tensor]:
        """Forecasts `(1, M, T, C, H, W)` of the baselines of pysteps."""
        nowcaster = self.settings.nowcaster(newest.source, _pixel_km(newest), self.model.frames_out)
        return {name: made[None] for name, made in nowcaster.forecast(newest.frames).items()}

    def doubts(self, newest: Latest) -> Iterator[str]:
        """Yield reasons to doubt a forecast."""
        if newest.early:
            yield f"frames of the future are left out ({newest.early} in {self.config.folder}); are the names in UTC?"
        for copy in newest.copies:
            yield f"the frame of {copy:%Y-%m-%d %H:%M} UTC is no different from the one before"
        pixel = _pixel_km(newest)
        trained = self.trained.get("pixel_km") if isinstance(self.trained, dict) else None
        if isinstance(trained, float) and not 0.8 < pixel / trained < 1.25:
            yield f"pixels are {pixel:.3g} km wide; {self.weights} was trained on {trained:.3g} km"

    @cached_property
    def origin(self) -> dict[str, str | None]:
        """Provenance of the code when the process started."""
        return provenance()

    def attributes(self) -> dict[str, str]:
        """Return the global attributes of a NetCDF file."""
        sampling = f"{self.settings.sampler}, {self.settings.sampling_steps} steps, seed {self.settings.seed}"
        return {
            "Conventions": "CF-1.8",
            "title": f"Forecast of {self.config.name}",
            "source": f"{self.name} with {self.weights}; {sampling}; code {self.origin['commit']}",
            "history": f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}: {self.origin['command']}",
            "references": "Yu et al., DiffCast, CVPR 2024, arXiv:2312.06734",
        }


def _pixel_km(newest: Latest) -> float:
    return newest.source.extent / newest.frames.shape[-1]


def coordinates(newest: Latest, config: FramesConfig, leads: int, members: int) -> dict[str, Variable]:
    """Return the coordinates of a forecast.

    x and y are distances from the lower left corner, as there is no projection.
    """
    reference = newest.times[-1]
    lead_times = config.interval * np.arange(1, leads + 1)  # minutes
    times = [seconds(reference + timedelta(minutes=lead)) for lead in lead_times]
    (height, width), (stored_height, stored_width) = newest.grid.fitted, newest.grid.stored
    pixel_x, pixel_y = config.extent_km / width, config.extent_km * stored_height / stored_width / height
    x = pixel_x * (np.arange(width) + 0.5)
    y = pixel_y * (np.arange(height)[::-1] + 0.5)
    return {
        "member": _axis("member", np.arange(1, members + 1, dtype=np.int32), "realization", "1"),
        "threshold": _axis("threshold", np.float64(config.thresholds), None, config.units),
        "time": _axis("time", np.float64(times), "time", long_name="time forecast for", axis="T", **EPOCH),
        "y": _axis("y", y, None, "km", long_name="distance from the lower edge to the centre of the pixel", axis="Y"),
        "x": _axis("x", x, None, "km", long_name="distance from the left edge to the centre of the pixel", axis="X"),
        "lead_time": _axis("time", lead_times, "forecast_period", "minutes", long_name="lead time"),
        "forecast_reference_time": Variable(
            (),
            np.float64(seconds(reference)),
            {"standard_name": "forecast_reference_time", "long_name": "time of the newest observed frame", **EPOCH},
        ),
    }


def quantities(members: Tensor, observed: Tensor, source: Source) -> dict[str, Variable]:
    """Return members, their mean and exceedance probabilities in physical units.

    `members` are `(M, T, H, W)` in [0, 1], NaN where data are missing. `observed` `(H, W)` is the
    number of observed frames in which a pixel is valid.
    """
    values = source.in_units(members)
    chances = torch.stack([exceedance(members, source.scale, step) for step in source.steps])
    names = [name for units, name in STANDARD_NAMES.items() if same_units(units, source.units)]
    standard = {"standard_name": names[0]} if names else {}
    located = {"coordinates": "lead_time forecast_reference_time"}
    plane = ("time", "y", "x")
    return {
        "forecast": _packed(
            ("member", *plane), values, source, {**standard, "long_name": f"{source.name} of each member", **located}
        ),
        "forecast_mean": _packed(
            plane,
            values.mean(0),
            source,
            {
                **standard,
                "long_name": f"{source.name}, mean of the members",
                "cell_methods": "realization: mean",
                **located,
            },
        ),
        "exceedance_probability": Variable(
            ("threshold", *plane),
            chances.numpy(),
            {
                "long_name": f"share of the members whose {source.name} reaches the threshold",
                "units": "1",
                "_FillValue": np.float32(np.nan),
                **located,
            },
        ),
        "observed_frames": Variable(
            ("y", "x"),
            observed.numpy().astype(np.int16),
            {"long_name": "number of observed frames with data; forecasts are missing where it is 0", "units": "1"},
        ),
    }


def _axis(dimension: str, values: np.ndarray, standard_name: str | None, units: str = "", **others: str) -> Variable:
    named = {"standard_name": standard_name, "long_name": dimension, "units": units} | others
    return Variable((dimension,), values, {key: value for key, value in named.items() if value})


def _packed(dimensions: tuple[str, ...], values: Tensor, source: Source, attributes: dict) -> Variable:
    """Pack values in units to 16 bits."""
    levels = (
        (LEVELS * (values - source.offset) / source.scale).round().nan_to_num(nan=float(FILL)).numpy().astype(np.int16)
    )
    scaling = {"scale_factor": np.float32(source.scale / LEVELS), "add_offset": np.float32(source.offset)}
    return Variable(dimensions, levels, {**attributes, "units": source.units, **scaling, "_FillValue": FILL})
