"""Frames in GeoTIFF and GRIB, which GDAL decodes."""

import contextlib
import mmap
import re
import struct
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from dataset.frames.georeference import Georeference
from dataset.frames.packages import needed
from dataset.frames.readers.attributes import parsed_time
from dataset.frames.readers.limits import MAX_PIXELS, check_frame
from dataset.frames.values import Metadata

# no files next to the frame, and none written there
ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
ITEM = re.compile(r'<Item name="([\w ]+)"[^>]*>([^<]*)</Item>')  # as FMI writes them into a TIFF
UNIT = re.compile(r'<Item name="Quantity" unit="([^"]*)"')
PICTURE = re.compile(rb"\x89PNG\r\n\x1a\n.{8}(.{8})|\xff\x4f\xff\x51.{4}(.{8})", re.DOTALL)  # width and height
MRMS = "209"  # discipline of NOAA's Multi-Radar Multi-Sensor system
NO_COVERAGE = {"mm/hr": -3.0, "dBZ": -999.0}  # of MRMS, by units


def read_geotiff(path: Path, variable: None) -> tuple[np.ndarray, Metadata]:
    """Read the only band of a picture `(H, W)`, masked where missing."""
    with _opened(path, "GTiff", "geotiff") as source:
        tags = source.tags()
        said = tags | dict(ITEM.findall(tags.get("GDAL_METADATA", "")))
        unit = UNIT.search(tags.get("GDAL_METADATA", ""))
        scaled = (source.scales[0], source.offsets[0]) != (1, 0)
        stored, georeference = _read(source)
        return stored, Metadata(
            scale=source.scales[0] if scaled else _number(said, "Gain"),
            offset=source.offsets[0] if scaled else _number(said, "Offset"),
            missing=() if "Nodata" not in said else (_number(said, "Nodata"),),
            dry=() if "Undetect" not in said else (_number(said, "Undetect"),),
            units=source.units[0] or (unit[1] if unit else None),
            quantity=said.get("Quantity") or source.descriptions[0],
            time=parsed_time(said.get("Observation time", ""), "%Y%m%d%H%M"),
            georeference=georeference,
        )


def read_grib(path: Path, variable: None) -> tuple[np.ndarray, Metadata]:
    """Read the only message of a file `(H, W)`, masked where missing."""
    _refuse_large_pictures(path)
    with _opened(path, "GRIB", "grib") as source:
        said = source.tags(1)
        units = said.get("GRIB_UNIT", "").strip("[]")
        stored, georeference = _read(source)
        return stored, Metadata(
            missing=(NO_COVERAGE[units],) if said.get("GRIB_DISCIPLINE") == MRMS and units in NO_COVERAGE else (),
            units=units,
            quantity=said.get("GRIB_COMMENT", "").partition(" [")[0] or said.get("GRIB_ELEMENT"),
            time=_time(_number(said, "GRIB_VALID_TIME")),
            georeference=georeference,
        )


@contextlib.contextmanager
def _opened(path: Path, driver: str, reader: str) -> Iterator:
    """A raster of one band and bearable size."""
    rasterio = needed("rasterio", reader)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.Env(**ALONE), rasterio.open(path, driver=driver) as source:
            check_frame((source.count, *source.shape), source.dtypes[0])
            yield source


def _refuse_large_pictures(path: Path) -> None:
    """Raise ValueError if a GRIB holds a picture larger than a frame.

    The picture is PNG or JPEG 2000. GDAL decodes them when it opens the file, whatever size the message declares.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in PICTURE.finditer(content):
            width, height = struct.unpack(">II", found[1] or found[2])
            if width * height > MAX_PIXELS:
                raise ValueError(f"its values are a picture of {width} x {height} pixels, more than {MAX_PIXELS}")


def _read(source) -> tuple[np.ndarray, Georeference | None]:
    """Values from north to south, and coordinates in metres or degrees."""
    stored, transform, crs = source.read(1, masked=True), source.transform, source.crs
    if transform.b or transform.d or transform.a <= 0:
        raise ValueError("its rows do not go from west to east")
    top, height = transform.f, -transform.e
    if height < 0:  # from south to north
        stored, top, height = stored[::-1], top - height * source.height, -height
    if not crs or not (crs.is_geographic or crs.linear_units_factor[1] == 1):
        return stored, None
    corner, pixel = (transform.c, top), (transform.a, height)
    return stored, Georeference.of_corner(crs.to_wkt(), corner, pixel, source.shape, crs.is_geographic)


def _number(said: dict[str, str], key: str) -> float | None:
    return float(said[key]) if key in said else None


def _time(epoch: float | None) -> datetime | None:
    """Naive UTC time of seconds since 1970."""
    with contextlib.suppress(ValueError, OverflowError, TypeError, OSError):
        return datetime.fromtimestamp(epoch, timezone.utc).replace(tzinfo=None)
    return None
