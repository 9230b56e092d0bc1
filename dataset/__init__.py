"""Data sets, by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dataset.sequences import Sequences
from utils.errors import InputError


def build_dataset(
    name: str,
    split: str,  # train, valid or test
    data_path: str | Path,  # of sevir, synthetic, sevir_lr and frames the folder, of the others the HDF5 file
    img_size: int | tuple[int, int] = 128,  # pixels of the side, or height and width
    seq_len: int = 25,  # frames
    stride: int | None = None,  # frames between windows; None: what the source or the split scheme has
    split_scheme: str = "official",  # or benchmark; of SEVIR's layout
    packed_path: str | Path | None = None,  # folder that holds packed caches; None: <data_path>/packed
    scale: float | None = None,  # physical value of the highest stored one, of shanghai and cikm; None: the official
    crop: int | None = None,  # pixels of the side of crops at native resolution, of frames; None: complete frames
    crop_by: str = "rain",  # what makes a random crop likely, or uniform
) -> Sequences:
    """Open one split of a data set (see `dataset.sequences.Sequences` for the items).

    Packed caches that fit are used in place of the original files. The items are the same. Raises `InputError` for an
    unknown name, an option that the data set does not have, or unusable files.
    """
    if name not in DATASETS:
        raise InputError(f"Unknown dataset '{name}'; choose one of {', '.join(DATASETS)}.")
    if scale is not None and name not in SCALED:
        raise InputError(f"scale belongs to {' and '.join(SCALED)}; leave it out for the data set {name}.")
    if crop is not None and name != "frames":
        raise InputError(f"crop belongs to frames; leave it out for the data set {name}.")
    if split_scheme != "official" and name not in DATED:
        raise InputError(f"split {split_scheme} is for {', '.join(DATED)}; leave it out for the data set {name}.")
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height != width and name not in OBLONG:
        raise InputError(f"img_size {height} {width}: the data set {name} has square frames; give one number.")
    img_size = (height, width) if name in OBLONG else height
    options = {"scale": scale} if name in SCALED else {}
    options |= {"crop": crop, "crop_by": crop_by} if name == "frames" else {}
    return DATASETS[name](split, data_path, img_size, seq_len, stride, split_scheme, packed_path, **options)


# Imports inside the functions: who opens one data set need not wait for the readers of the others.


def _sevir(split, data_path, img_size, seq_len, stride, split_scheme, packed_path, name="sevir"):
    from dataset.sevir.packed import open_packed
    from dataset.sevir.reader import Sevir

    options = img_size, seq_len, stride, split_scheme
    packed = open_packed(name, split, data_path, *options, packed_path)
    return Sevir(data_path, split, *options) if packed is None else packed


def _synthetic(split, data_path, *options):
    from dataset.synthetic.writer import ensure

    ensure(data_path)
    return _sevir(split, data_path, *options, name="synthetic")


def _sevir_lr(split, data_path, img_size, seq_len, stride, split_scheme, packed_path):
    from dataset.sevir.reader import SevirLR

    if packed_path is not None:
        raise InputError("packed_path does not fit the data set sevir_lr, which has no packed cache; leave it out.")
    return SevirLR(data_path, split, img_size, seq_len, stride, split_scheme)


def _radar_h5(name, split, data_path, img_size, seq_len, stride, split_scheme, packed_path, scale=None):
    from dataset.published.reader import RadarH5

    for option, value in {"stride": stride, "packed_path": packed_path}.items():
        if value is not None:
            raise InputError(f"{option} does not fit the data set {name}, whose file holds its windows; leave it out.")
    return RadarH5(name, data_path, split, img_size, seq_len, scale)


def _frames(split, data_path, img_size, seq_len, stride, split_scheme, packed_path, crop, crop_by):
    from dataset.frames.crops import open_crops
    from dataset.frames.reader import open_frames

    if crop is not None:
        return open_crops(split, data_path, crop, seq_len, stride, packed_path, crop_by)
    return open_frames(split, data_path, img_size, seq_len, stride, packed_path)


SCALED = ("shanghai", "cikm")
OBLONG = ("shanghai", "meteo", "cikm", "frames")  # may be taken to frames that are not square
DATED = ("sevir", "sevir_lr", "synthetic")  # split by one of the schemes
DATASETS: dict[str, Callable[..., Sequences]] = {
    "sevir": _sevir,
    "sevir_lr": _sevir_lr,
    "shanghai": partial(_radar_h5, "shanghai"),
    "meteo": partial(_radar_h5, "meteo"),
    "cikm": partial(_radar_h5, "cikm"),
    "frames": _frames,
    "synthetic": _synthetic,
}
