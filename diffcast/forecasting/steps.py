"""Extrapolation, S-PROG and STEPS of the package pysteps, as baselines.

pysteps: Pulkkinen et al. 2019, Geosci. Model Dev. 12. S-PROG: Seed 2003, J. Appl. Meteor. 42. STEPS: Bowler et al.
2006, Q. J. R. Meteorol. Soc. 132. All settings are those of pysteps' examples: rain rates of at least 0.1 mm/h in dB,
motion by Lucas and Kanade's method, three observed frames and six cascade levels.
"""

import contextlib
import hashlib
import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dataset.frames.packages import has
from dataset.sequences import Sequences
from dataset.source import Source
from dataset.units import rain_rate, same_units
from diffcast.forecasting.domain import observed_part, put_back
from diffcast.loading import derived_seed
from utils.errors import InputError

LOG = logging.getLogger(__name__)
THRESHOLD = 0.1  # mm/h
LOWEST, DRY = -10.0, -15.0  # the threshold, and rates below it, in dB
FRAMES = 3  # observed frames for motion and autoregression
LEVELS = 6  # of the cascade
ZR = 200.0, 1.6  # Z = a R^b of Marshall and Palmer


class Nowcaster:
    """Makes nowcasts of frames of one source.

    Raises `InputError` if the source has neither rain rates nor reflectivity, or if pysteps is missing.
    """

    def __init__(
        self,
        methods: Sequence[str],  # keys of `METHODS`
        source: Source,
        pixel_km: float,
        leads: int,  # frames to forecast
        members: int,  # of STEPS
        seed: int = 0,
    ):
        check_packages(methods)
        check_source(methods, source)
        self.methods, self.source, self.pixel_km = tuple(methods), source, pixel_km
        self.leads, self.members, self.seed = leads, members, seed
        self._latest: tuple[object, dict[str, Tensor]] = None, {}
        self._reported: set[str] = set()

    def forecast(self, observed: Tensor) -> dict[str, Tensor]:
        """Forecast frames `(T, 1, H, W)` in [0, 1], NaN where data are missing.

        Returns `(M, leads, 1, H, W)` in [0, 1] by method, where M is 1 for all but STEPS. Where pysteps has no value,
        because the rain would come from outside or from missing data, a nowcast is dry. The random numbers of STEPS
        depend on the seed and the frames alone. The nowcasts of the latest frames are kept.
        """
        if not self.methods:  # frames of any quantity
            return {}
        last = observed[-FRAMES:, 0].cpu()
        digest = hashlib.sha256(last.numpy().tobytes()).digest()
        if self._latest[0] != (last.shape, digest):
            seed = derived_seed(self.seed, 8, int.from_bytes(digest[:8], "big")) % 2**32
            part = observed_part(last)  # padding would change what pysteps estimates from a map
            made = self._made(rain_rates(last[(..., *part)], self.source), seed)
            self._latest = (
                (last.shape, digest),
                {name: put_back(one, part, last.shape[1:]) for name, one in made.items()},
            )
        return self._latest[1]

    def forecast_sequences(self, sequences: Sequences, indices: Sequence[int], frames_in: int) -> dict[str, Tensor]:
        """Forecast sequences on the complete frames that they are parts of.

        Returns `(B, M, leads, 1, H, W)` in [0, 1] by method.
        """
        each = []
        parts = [sequences.part_of(index) for index in indices] if self.methods else []
        for number, of_map in itertools.groupby(parts, key=lambda part: part[0]):
            made = self.forecast(sequences.map_frames(number)[:frames_in])
            each += [{name: maps[(..., *part)] for name, maps in made.items()} for _, part in of_map]
        return {name: torch.stack([one[name] for one in each]) for name in self.methods}

    def _made(self, rates: np.ndarray, seed: int) -> dict[str, Tensor]:
        window = Window(rates, self.leads, self.members, seed, self.pixel_km, self.source.interval)
        return {name: frames_of(self._rates(name, window), self.source)[:, :, None] for name in self.methods}

    def _rates(self, method: str, window: "Window") -> np.ndarray:
        """Rain rates `(M, leads, H, W)`, of extrapolation where the frames do not determine a method's statistics."""
        try:
            return METHODS[method](window)
        except UndefinedError as error:
            if method not in self._reported:
                self._reported.add(method)
                LOG.info("%s: extrapolation stands in where too little rain was observed (such as: %s)", method, error)
            return np.repeat(extrapolation(window), members_of(method, self.members), axis=0)


def check_packages(methods: Sequence[str]) -> None:
    """Raise `InputError` if there are methods, but no pysteps."""
    if methods and not (has("pysteps") and has("cv2")):
        raise InputError(
            f"baselines {' '.join(methods)} need pysteps and OpenCV, and a C compiler to install them: pip install "
            "pysteps opencv-python-headless."
        )


def check_source(methods: Sequence[str], source: Source) -> None:
    """Raise `InputError` if methods of pysteps are to forecast something else than rain rate or reflectivity."""
    if methods and not _is_reflectivity(source) and rain_rate(source.units, source.interval) is None:
        raise InputError(
            f"baselines {' '.join(methods)} need rain in mm/h or mm, or reflectivity in dBZ, but {source.name} is in "
            f"{source.units}; leave them out."
        )


def rain_rates(frames: Tensor, source: Source) -> np.ndarray:
    """Rain rates in mm/h of frames in [0, 1], which are dry at 0 and NaN where data are missing."""
    values = source.in_units(frames.double()).numpy()
    if _is_reflectivity(source):
        rates = (10 ** (values / 10) / ZR[0]) ** (1 / ZR[1])
    else:
        rates = values * rain_rate(source.units, source.interval)
    return np.where(frames.numpy() <= 0, 0.0, rates)


def frames_of(rates: np.ndarray, source: Source) -> Tensor:
    """Float32 frames in [0, 1] of rain rates in mm/h, 0 where these are NaN."""
    wet = rates > 0
    rates = np.where(wet, rates, 1.0)
    if _is_reflectivity(source):
        values = 10 * np.log10(ZR[0] * rates ** ZR[1])
    else:
        values = rates / rain_rate(source.units, source.interval)
    frames = source.to_frames(torch.from_numpy(values)).clamp(0, 1).float()
    return torch.where(torch.from_numpy(wet), frames, 0)


def _is_reflectivity(source: Source) -> bool:
    return same_units(source.units, "dBZ")


class UndefinedError(Exception):
    """The observed frames do not determine the statistics of a method."""


@dataclass(eq=False)
class Window:
    """Observed rain rates, and what the methods share."""

    rates: np.ndarray  # (T, H, W) in mm/h, NaN where data are missing
    leads: int
    members: int
    seed: int
    pixel_km: float
    interval: float  # minutes

    @property
    def wet(self) -> np.ndarray:
        """Which frames have rain, `(T,)`."""
        return (self.rates >= THRESHOLD).any(axis=(1, 2))

    @cached_property
    def decibels(self) -> np.ndarray:
        """Rates in dB."""
        with _quiet():
            from pysteps.utils.transformation import dB_transform

            return dB_transform(self.rates, threshold=THRESHOLD, zerovalue=DRY)[0]

    @cached_property
    def motion(self) -> np.ndarray:
        """Motion `(2, H, W)`, x and y in pixels per frame."""
        with _quiet():
            from pysteps.motion.lucaskanade import dense_lucaskanade

            if len(self.rates) == 1:
                return np.zeros((2, *self.rates.shape[1:]))
            return dense_lucaskanade(self.decibels)

    @property
    def order(self) -> int:
        """Order of the autoregression. Raises `UndefinedError` unless all frames have rain."""
        if len(self.rates) == 1 or not self.wet.all():
            raise UndefinedError("some observed frames have no rain")
        return len(self.rates) - 1


def extrapolation(window: Window) -> np.ndarray:
    """Rates `(1, leads, H, W)` of the last frame, moved along the motion."""
    if not window.wet[-1]:
        return _dry(window)
    with _quiet():
        from pysteps.nowcasts.extrapolation import forecast

        return forecast(window.rates[-1], window.motion, window.leads)[None]


def sprog(window: Window) -> np.ndarray:
    """Rates `(1, leads, H, W)` of S-PROG, which smooths what cannot be predicted."""
    if not window.wet[-1]:
        return _dry(window)
    with _quiet(), _undefined():
        from pysteps.nowcasts.sprog import forecast

        made = forecast(
            window.decibels,
            window.motion,
            window.leads,
            precip_thr=LOWEST,
            n_cascade_levels=LEVELS,
            ar_order=window.order,
        )
    return _rates_of(made)[None]


def steps(window: Window) -> np.ndarray:
    """Rates `(members, leads, H, W)` of STEPS."""
    if not window.wet[-1]:
        return np.repeat(_dry(window), window.members, axis=0)
    with _quiet(), _undefined():
        from pysteps.nowcasts.steps import forecast

        made = forecast(
            window.decibels,
            window.motion,
            window.leads,
            n_ens_members=window.members,
            n_cascade_levels=LEVELS,
            precip_thr=LOWEST,
            kmperpixel=window.pixel_km,
            timestep=window.interval,
            ar_order=window.order,
            seed=window.seed,
        )
    return _rates_of(made)


METHODS: dict[str, Callable[[Window], np.ndarray]] = {
    "extrapolation": extrapolation,
    "sprog": sprog,
    "steps": steps,
}


def members_of(method: str, members: int) -> int:
    """Size of the ensemble of a method: only STEPS has several members."""
    return members if method == "steps" else 1


def _dry(window: Window) -> np.ndarray:
    return np.zeros((1, window.leads, *window.rates.shape[1:]))


def _rates_of(decibels: np.ndarray) -> np.ndarray:
    """Rates in mm/h, 0 below the threshold."""
    return np.where(decibels < LOWEST, 0.0, 10 ** (decibels / 10))


@contextlib.contextmanager
def _undefined() -> Iterator[None]:
    """Raise `UndefinedError` for what pysteps raises if rain is too rare, or the same in all frames."""
    try:
        yield
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UndefinedError(str(error)) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what pysteps prints, and keep the random state of NumPy that STEPS would set."""
    state = np.random.get_state()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            np.random.set_state(state)
