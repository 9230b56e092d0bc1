"""Grey PNG pictures that may be damaged or hostile."""

import io
import math
import stat
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dataset.hdf5 import patiently, reason_of
from utils.errors import InputError

MOST_PIXELS = 2**22  # 2048 x 2048
BYTES_PER_PIXEL = 8  # of a file: twice an uncompressed RGBA picture
GREY = ("L", "I;16", "I;16B", "I")
PNG_ERRORS = (OSError, Image.DecompressionBombError, SyntaxError, ValueError)


def read_png(path: Path, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """Read the grey levels `(H, W)` of a picture, uint8 or wider.

    A picture may say that it is grey, or have grey colours. Raises `InputError` that names the file if it is damaged,
    too large, transparent or coloured, or if some of its bits would be lost.
    """
    try:
        found, most = path.stat(), BYTES_PER_PIXEL * most_pixels
        if not stat.S_ISREG(found.st_mode) or found.st_size > most:
            raise InputError(f"{path} is no frame: it is no regular file, or has more than {most} bytes.")
        return patiently(lambda: _decode(path, most_pixels))
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path} cannot be read as a PNG picture: it is none, or its header is damaged.") from None
    except PNG_ERRORS as error:
        raise InputError(f"{path} cannot be read as a PNG picture: {reason_of(error, path)}.") from None


def _decode(path: Path, most_pixels: int) -> np.ndarray:
    # from memory, because a file would be asked for as much as a chunk declares; other formats may run programs
    with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as image:
        if math.prod(image.size) > most_pixels:
            raise InputError(f"{path} is {image.width} x {image.height} pixels; use at most {most_pixels} pixels.")
        if image.mode in GREY:
            return np.array(image)
        coarse = any("16" in tile[3] for tile in image.tile)  # bands of 16 bits, of which Pillow keeps 8
        if image.mode not in ("1", "P", "RGB", "RGBA") or coarse:
            raise InputError(f"{path} has mode {image.mode}{' of 16 bits' * coarse}; save it as 8- or 16-bit grey.")
        if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
            raise InputError(f"{path} has transparent pixels; save it as 8- or 16-bit grey.")
        # all of a palette, or else a picture of dry weather would pass where one of rain does not
        colors = np.reshape(image.getpalette() or [], (-1, 3))
        bands = np.asarray(image.convert("RGB"))
    if (colors != colors[:, :1]).any() or (bands != bands[..., :1]).any():
        raise InputError(f"{path} is coloured; save it as grey levels, which are the values of the radar product.")
    return bands[..., 0].copy()
