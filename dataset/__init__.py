"""Data sets, by name."""

from collections.abc import Callable
from pathlib import Path

from dataset.sevir import EventWindows, Sevir
from utils.errors import InputError


def build_dataset(
    name: str,
    split: str,  # train, valid or test
    data_path: str | Path,  # folder that holds CATALOG.csv
    img_size: int = 128,  # pixels
    seq_len: int = 25,  # frames
    stride: int | None = None,  # frames between windows; None: the split scheme's own (official 5, benchmark 12)
    split_scheme: str = "official",  # or benchmark
    packed_path: str | Path | None = None,  # folder that holds packed caches; None: <data_path>/packed
) -> EventWindows:
    """Open one split as a map-style dataset of float32 `(seq_len, 1, img_size, img_size)` in [0, 1].

    A packed cache that fits (see `dataset.packed`) is used in place of the original files; the items are the
    same. The result has `source` (units, thresholds, colours) and `sequence_id(index)`. Raises `InputError`
    for an unknown name, a wrong option or unusable files.
    """
    if name not in DATASETS:
        raise InputError(f"Unknown dataset '{name}'; choose one of {', '.join(DATASETS)}.")
    return DATASETS[name](split, data_path, img_size, seq_len, stride, split_scheme, packed_path)


# Imports inside the functions: `python -m dataset.packed` imports this package before it runs the module.


def _sevir(split, data_path, img_size, seq_len, stride, split_scheme, packed_path, name="sevir"):
    from dataset.packed import open_packed

    options = img_size, seq_len, stride, split_scheme
    packed = open_packed(name, split, data_path, *options, packed_path)
    return Sevir(data_path, split, *options) if packed is None else packed


def _synthetic(split, data_path, *options):
    from dataset.synthetic import ensure

    ensure(data_path)
    return _sevir(split, data_path, *options, name="synthetic")


DATASETS: dict[str, Callable[..., EventWindows]] = {"sevir": _sevir, "synthetic": _synthetic}
