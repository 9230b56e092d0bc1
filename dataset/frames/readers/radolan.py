"""Frames in RADOLAN, the binary composites of the German Weather Service (DWD).

The header is text up to the byte 3. Rows follow from south to north, in bytes or in 16 bits, of which 4 are flags.
https://www.dwd.de/DE/leistungen/radolan/radolan_info/radolan_radvor_op_komposit_format_pdf.pdf
"""

import re
from pathlib import Path

import numpy as np

from dataset.frames.georeference import Georeference
from dataset.frames.readers.attributes import parsed_time
from dataset.frames.readers.limits import check_frame
from dataset.frames.values import Metadata

BEGIN = re.compile(rb"([A-Z][A-Z0-9])(\d{6})\d{5}(\d{4})BY *(\d{1,9})(?=[A-Z])")
GRID = re.compile(rb"GP *(\d{1,5}) *x *(\d{1,5})")
PRECISION = re.compile(rb"PR *E([+-]\d\d)")
VERSION = re.compile(rb"VS *(\d{1,2})")
END, MAX_HEADER = b"\3", 10_000
VALUE, MISSING, NEGATIVE, CLUTTER = 0x0FFF, 0x2000, 0x4000, 0x8000  # bits
BYTES_UNUSABLE = (249, 250, 255)  # clutter and no data
REFLECTIVITY = ("RX", "EX", "WX", "WN")  # dBZ = v / 2 - 32.5; all others are rain in mm
# pixels from the left and the lower edge to the point at 9 E, 51 N, by height and width
ORIGINS = {(900, 900): (450, 450), (1100, 900): (370, 550), (1200, 1100): (470, 600), (1500, 1400): (600, 800)}
STEREOGRAPHIC = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10"
SPHERE = (f"{STEREOGRAPHIC} +R=6370040", (-73462.16692186, -4208644.72426557))  # with x and y of the origin in m
ELLIPSOID = (f"{STEREOGRAPHIC} +ellps=WGS84", (-73696.8352177, -4222088.86193059))  # since format version 5


def read_radolan(path: Path, variable: None) -> tuple[np.ndarray, Metadata]:
    """Read stored values `(H, W)`, masked where clutter or not covered."""
    with path.open("rb") as file:
        header, end, _ = file.read(MAX_HEADER).partition(END)
        begin, grid, precision = (part.search(header) for part in (BEGIN, GRID, PRECISION))
        if not (begin and grid and precision and end):
            raise ValueError("its header is not that of a RADOLAN composite")
        shape = (int(grid[1]), int(grid[2]))
        check_frame(shape, np.uint16)
        size = int(begin[4]) - len(header) - 1
        file.seek(len(header) + 1)
        content = file.read(2 * shape[0] * shape[1])
    if len(content) != size or size not in (shape[0] * shape[1], 2 * shape[0] * shape[1]):
        raise ValueError(f"its {len(content)} bytes are not {shape[0]} x {shape[1]} values, {size} bytes by its header")
    stored = _unpacked(content, shape)[::-1]
    product, time = begin[1].decode(), (begin[2] + begin[3]).decode()
    scale, offset = 10.0 ** int(precision[1]), 0.0
    if product in REFLECTIVITY:
        scale, offset = scale / 2, -32.5
    version = VERSION.search(header)
    return stored, Metadata(
        scale=scale,
        offset=offset,
        units="dBZ" if product in REFLECTIVITY else "mm",
        quantity=product,
        time=parsed_time(time, "%d%H%M%m%y"),
        georeference=_georeference(shape, int(version[1]) if version else 0),
    )


def _unpacked(content: bytes, shape: tuple[int, int]) -> np.ma.MaskedArray:
    if len(content) == shape[0] * shape[1]:
        stored = np.frombuffer(content, np.uint8).reshape(shape)
        return np.ma.array(stored, mask=np.isin(stored, BYTES_UNUSABLE))
    packed = np.frombuffer(content, "<u2").reshape(shape)
    values = (packed & VALUE).astype(np.int16)
    values[packed & NEGATIVE > 0] *= -1
    return np.ma.array(values, mask=packed & (MISSING | CLUTTER) > 0)


def _georeference(shape: tuple[int, int], version: int) -> Georeference | None:
    """Coordinates of a national grid of 1 km, else None."""
    if shape not in ORIGINS:
        return None
    crs, (x, y) = SPHERE if version < 5 else ELLIPSOID
    left, below = ORIGINS[shape]
    return Georeference.of_corner(crs, (x - 1000 * left, y + 1000 * (shape[0] - below)), (1000.0, 1000.0), shape)
