"""Forecast files by the conventions CF-1.8 and ACDD-1.3, as NetCDF-4 or Zarr.

https://cfconventions.org/Data/cf-conventions/cf-conventions-1.8/cf-conventions.html
https://wiki.esipfed.org/Attribute_Convention_for_Data_Discovery_1-3
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.frames.config import FramesConfig
from dataset.frames.latest import Latest
from dataset.source import Source
from dataset.units import same_units
from diffcast.forecasting import coordinates
from diffcast.forecasting.coordinates import axis
from diffcast.forecasting.pictures import exceedance
from utils.netcdf import Attributes, Variable, write_netcdf
from utils.zarr_store import write_zarr

FORMATS = {"netcdf": ".nc", "zarr": ".zarr"}  # with the suffixes of their files
LEVELS, SHARES, FILL = 32000, 10000, np.int16(-32768)  # steps of packed values in their range, and of probabilities
STANDARD_NAMES = {
    "dBZ": "equivalent_reflectivity_factor",
    "mm/h": "lwe_precipitation_rate",
    "mm": "lwe_thickness_of_precipitation_amount",
}
HEIGHT = {"standard_name": "height", "long_name": "nominal height", "units": "m", "positive": "up", "axis": "Z"}
MODEL = {"coverage_content_type": "modelResult"}


def write_forecast(path: Path, variables: Mapping[str, Variable], attributes: Attributes) -> None:
    """Write a NetCDF-4 file or a Zarr store, by the suffix of the path.

    It is complete or absent. Raises `InputError` if it cannot be written.
    """
    if path.suffix == FORMATS["zarr"]:
        write_zarr(path, variables, attributes)
    else:
        write_netcdf(path, variables, attributes)


def contents(
    newest: Latest,
    config: FramesConfig,
    members: Tensor,  # (M, T, H, W) in [0, 1], NaN where data are missing
    observed: Tensor,  # (H, W): number of observed frames in which a pixel is valid
    place: tuple[Mapping[str, Variable], Mapping[str, str]],  # what `coordinates.space` returns
) -> dict[str, Variable]:
    """All variables of a forecast, in physical units."""
    pixels, references = place
    times = coordinates.moments(newest, config, members.shape[1])
    return {
        **pixels,
        **times,
        "realization": axis("realization", np.arange(1, len(members) + 1, dtype=np.int32), "realization", "1"),
        "threshold": axis("threshold", np.float64(config.thresholds), None, config.units),
        "height": Variable((), np.float64(0), HEIGHT),
        **_values(members, newest.source, tuple(pixels)[:2], references),
        **_chances(members, newest.source, times["forecast_window"].values, tuple(pixels)[:2], references),
        "observed_frames": Variable(
            tuple(pixels)[:2],
            observed.numpy().astype(np.int16),
            {
                "standard_name": "number_of_observations",
                "long_name": "number of observed frames with data; forecasts are missing where it is 0",
                "units": "1",
                "coverage_content_type": "auxiliaryInformation",
                **_located(references),
            },
        ),
    }


def _values(members: Tensor, source: Source, plane: tuple[str, str], references: Mapping[str, str]) -> dict:
    names = [name for units, name in STANDARD_NAMES.items() if same_units(units, source.units)]
    about = ({"standard_name": names[0]} if names else {}) | _located(references, "forecast_period")
    average = sum(map(source.in_units, members)) / len(members)
    each, mean = {"long_name": f"{source.name} of each member"}, {"long_name": f"{source.name}, mean of the members"}
    return {
        "forecast": _packed(("realization", "time", *plane), map(source.in_units, members), source, about | each),
        "forecast_mean": _packed(("time", *plane), average, source, about | mean),
    }


def _chances(
    members: Tensor, source: Source, windows: np.ndarray, plane: tuple[str, str], references: Mapping[str, str]
) -> dict[str, Variable]:
    """Probabilities at each lead time, and at any lead time in each window."""
    highest = torch.stack([members[:, : int(end / source.interval + 1e-9)].amax(1) for end in windows], dim=1)
    at_each, at_any = (
        torch.stack([exceedance(frames, source.scale, step) for step in source.steps]) for frames in (members, highest)
    )
    reaches = f"probability that {source.name} reaches the threshold"
    ever = f"forecast_window: maximum (interval: {source.interval:g} minutes)"
    return {
        "exceedance_probability": _share(
            ("threshold", "time", *plane),
            at_each,
            {"long_name": reaches, **_located(references, "forecast_period")},
        ),
        "exceedance_probability_within": _share(
            ("threshold", "forecast_window", *plane),
            at_any,
            {"long_name": f"{reaches} at any lead time", "cell_methods": ever, **_located(references)},
        ),
    }


def _located(references: Mapping[str, str], *names: str) -> dict[str, str]:
    """References to coordinates that are no dimensions."""
    further = references.get("coordinates", "").split()
    return {**references, "coordinates": " ".join([*names, "forecast_reference_time", "height", *further])}


def _packed(dimensions: tuple[str, ...], values: Iterable[Tensor], source: Source, attributes: dict) -> Variable:
    """Physical values, packed to 16 bits one after the other to save memory."""
    levels = [
        (LEVELS * (one - source.offset) / source.scale).round().nan_to_num(nan=float(FILL)).short() for one in values
    ]
    packing = {
        "scale_factor": np.float32(source.scale / LEVELS),
        "add_offset": np.float32(source.offset),
        "_FillValue": FILL,
    }
    stored = torch.stack(levels).numpy()
    return Variable(dimensions, stored, {**attributes, "units": source.units, **MODEL, **packing})


def _share(dimensions: tuple[str, ...], shares: Tensor, attributes: dict) -> Variable:
    """Probabilities, packed to 16 bits."""
    levels = (SHARES * shares).round().nan_to_num(nan=float(FILL)).short().numpy()
    packing = {"scale_factor": np.float32(1 / SHARES), "add_offset": np.float32(0), "_FillValue": FILL}
    return Variable(dimensions, levels, {**attributes, "units": "1", **MODEL, **packing})


def description(
    newest: Latest,
    config: FramesConfig,
    variables: Mapping[str, Variable],
    source: str,  # what made the forecast
    command: str,
) -> dict[str, str | float]:
    """Global attributes of a forecast file.

    What `frames.yaml` says about the origin replaces what the frames say.
    """
    now = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    begin, end = (_iso(float(variables["time"].values[place])) for place in (0, -1))
    leads = variables["forecast_period"].values
    members, name = len(variables["realization"].values), config.name
    said = dict(newest.credits) | dict(config.about)
    maker = said.get("creator_name") or said.get("institution")
    roles = {"institution": maker, "creator_name": maker, "publisher_name": maker}
    for role in ("email", "url"):
        roles[f"publisher_{role}"] = said.get(f"creator_{role}")
    if maker:
        roles |= {"acknowledgement": f"Radar frames: {maker}"}
    return {
        "Conventions": "CF-1.8, ACDD-1.3",
        "title": f"Forecast of {name}",
        "summary": f"{members} members of a forecast of {name}, every {config.interval:g} minutes up to {leads[-1]:g} "
        f"minutes from {newest.times[-1]:%Y-%m-%d %H:%M} UTC, with exceedance probabilities",
        "keywords": "precipitation, radar, nowcasting, ensemble forecast, exceedance probability",
        "id": f"forecast_{newest.times[-1]:%Y%m%dT%H%M%SZ}",
        "source": source,
        "history": f"{now}: {command}",
        "date_created": now,
        "references": "Yu et al., DiffCast, CVPR 2024, arXiv:2312.06734",
        "comment": "Values are missing where no observed frame has data. Probabilities are shares of the members.",
        "project": "DiffCast",
        "processing_level": "forecast",
        "standard_name_vocabulary": "CF Standard Name Table v93",
        "time_coverage_start": begin,
        "time_coverage_end": end,
        "time_coverage_duration": f"PT{leads[-1] - leads[0]:g}M",
        "time_coverage_resolution": f"PT{config.interval:g}M",
        **coordinates.extent(variables),
        "geospatial_vertical_min": 0.0,
        "geospatial_vertical_max": 0.0,
        "geospatial_vertical_positive": "up",
        "geospatial_bounds_vertical_crs": "height above ground",
        **{key: value for key, value in roles.items() if value},
        **said,
    }


def _iso(epoch: float) -> str:
    return f"{datetime.fromtimestamp(epoch, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
