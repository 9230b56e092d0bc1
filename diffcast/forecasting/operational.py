"""Operational forecasts from the newest frames of a folder.

Each forecast becomes a file and pictures.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from dataset.frames.archive.names import seconds
from dataset.frames.config import FramesConfig
from dataset.frames.latest import Latest, latest
from diffcast.evaluation.results import data_differences, describe_source
from diffcast.forecaster import device_of
from diffcast.forecasting.coordinates import space
from diffcast.forecasting.forecasts import ForecastSettings, check_members, forecast_all, forecast_bar
from diffcast.forecasting.output import FORMATS, contents, description, write_forecast
from diffcast.forecasting.pictures import draw_case
from diffcast.loading import generators
from utils.errors import InputError
from utils.files import Dispensable
from utils.provenance import provenance

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """Settings and methods of operational forecasts."""

    model: nn.Module  # a forecaster of frames with one channel, where and how it shall run
    name: str  # of the forecaster in pictures
    config: FramesConfig  # of the folder that the frames arrive in
    settings: ForecastSettings
    folder: Path  # of the results
    weights: str  # which they are, for the attributes of the files
    max_age: float = 3  # intervals that the newest frame may be old
    trained: object = None  # what the weights say about the frames they were trained on, as `describe_source` does
    suffix: str = FORMATS["netcdf"]  # of the files
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
        """Forecast from the newest frames, and return the file.

        `now` is the present in UTC, by default that of the clock.

        Raises `InputError` if they are too old or not complete, or if they have been forecast from before.
        """
        newest = self.newest(now)
        path = self.path_of(newest.times[-1])
        if path.exists():
            raise InputError(f"{path} exists already; delete it, choose another --out, or wait for the next frame.")
        self.forecast(newest, path)
        return path

    def newest(self, now: datetime | None = None, until: datetime | None = None) -> Latest:
        """The newest frames as of `now`, which the model observes; those `until` a nominal time if it is given."""
        size = None if self.native else self.model.frame_shape[1:]
        return latest(self.config, self.model.frames_in, size, now, self.max_age, until)

    def path_of(self, time: datetime) -> Path:
        """The file of the forecast from the frames until a nominal time."""
        return self.folder / f"forecast_{time:%Y%m%dT%H%M%SZ}{self.suffix}"

    def forecast(self, newest: Latest, path: Path) -> None:
        """Forecast, and write the file and pictures next to it.

        Pixels that no observed frame covers are missing in both.
        """
        for doubt in self.doubts(newest):
            LOG.warning("%s", doubt)
        begin, crop = time.monotonic(), newest.grid.crop
        place = space(newest, self.config)  # first, as a package may be missing
        device = device_of(self.model)
        draws = generators(device, self.settings.seed, 6, [seconds(newest.times[-1])])
        frames = newest.frames.to(device)[None]
        with forecast_bar(self.model, self.settings.members) as bar:
            forecasts = forecast_all(self.model, frames, self.settings, draws, self.name, bar.update)
        forecasts |= self.nowcasts(newest)
        observed = crop(newest.frames)
        valid = ~observed.isnan()
        unseen = ~valid.any(0)
        forecasts = {name: crop(frames[0]).cpu().masked_fill(unseen, torch.nan) for name, frames in forecasts.items()}
        members = forecasts[self.name][:, :, 0]
        variables = contents(newest, self.config, members, valid.sum(0)[0], place)
        write_forecast(
            path, variables, description(newest, self.config, variables, self.source, self.origin["command"])
        )
        with Dispensable(f"pictures of {path}"):
            about = newest.source, _pixel_km(newest), newest.times[-1]
            draw_case(self.folder, path.stem, observed, None, forecasts, *about, grid=True, place=newest.georeference)
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

    @property
    def source(self) -> str:
        """What makes the forecasts, for the attributes of the files."""
        sampling = f"{self.settings.sampler}, {self.settings.sampling_steps} steps, seed {self.settings.seed}"
        return f"{self.name} with {self.weights}; {sampling}; code {self.origin['commit']}"


def _pixel_km(newest: Latest) -> float:
    return newest.source.extent / newest.frames.shape[-1]
