"""Frames in MeteoSwiss's GIF: classes of the rain of five minutes.

Products AQC and CPC have the same classes and the grid CCS4. The scale is that of pysteps's `import_mch_gif`.
https://pysteps.readthedocs.io/en/stable/generated/pysteps.io.importers.import_mch_gif.html
"""

import io
import re
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.frames.georeference import Georeference
from dataset.frames.readers.attributes import parsed_time
from dataset.frames.values import Metadata

SHAPE, PIXEL = (640, 710), (1000.0, 1000.0)
CORNER = (255_000.0, 480_000.0)  # x and y of the outer upper left corner
CRS = (
    "+proj=somerc +lon_0=7.43958333333333 +lat_0=46.9524055555556 +k_0=1 +x_0=600000 +y_0=200000 +ellps=bessel "
    "+towgs84=674.374,15.056,405.346,0,0,0,0 +units=m +no_defs"
)
PRODUCT = re.compile(rb"PRDT=(AQC|CPC)(\d{9}) SCALE=mmh2LASSEN8bitmm_mn .*ACCUm=000005 ")  # with its time
MAX_SIZE = 2**22  # bytes of a file
CLASSES = np.arange(256)
COLORS = np.stack([np.full(256, 255), 255 - CLASSES, 255 - CLASSES], axis=1) * (CLASSES < 255)[:, None]
DRY, MISSING = (CLASSES < 2) | (CLASSES > 250), 255
RAIN = np.where(DRY, -np.inf, (10 ** ((CLASSES - 71.5) / 20) / 316) ** (1 / 1.5))  # mm in 5 minutes


def read_meteoswiss(path: Path, variable: None) -> tuple[np.ndarray, Metadata]:
    """Read rain `(H, W)` in mm, masked where missing.

    Raises ValueError for other pictures.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE or content[6:10] != struct.pack("<HH", *SHAPE[::-1]):
        raise ValueError(f"it is not a GIF of {SHAPE[0]} x {SHAPE[1]} pixels as MeteoSwiss writes them")
    try:
        index, product = _classes(content)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    stored = np.ma.array(RAIN[index], mask=index == MISSING)
    return stored, Metadata(
        units="mm",
        quantity=f"rain of 5 minutes ({product[1].decode()})",
        time=parsed_time(product[2].decode(), "%y%j%H%M"),
        georeference=Georeference.of_corner(CRS, CORNER, PIXEL, SHAPE),
    )


def _classes(content: bytes) -> tuple[np.ndarray, re.Match[bytes]]:
    """Classes `(H, W)` and what names the product."""
    with Image.open(io.BytesIO(content), formats=["GIF"]) as image:
        product = PRODUCT.search(bytes(image.info.get("comment", b"")))
        if product is None:
            raise ValueError("its comment does not name a product AQC or CPC of MeteoSwiss")
        colors = np.reshape(image.getpalette() or [], (-1, 3))
        if image.size != SHAPE[::-1] or image.n_frames != 1 or not np.array_equal(colors, COLORS):
            raise ValueError("its colours are not the classes of rain, or it holds several pictures")
        return np.array(image), product
