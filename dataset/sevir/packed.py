"""A fast cache of SEVIR: every usable event as bytes at working resolution, a memory-mapped file per split.

    python -m dataset pack --dataset sevir --data_path DIR --img_size 128

`build_dataset` finds the cache by itself. Its items equal those read directly, bit for bit. A cache lives in
a folder of its own: `index.json` says what it was made from, `<split>.npy` holds uint8 `(N, 49, H, W)`. The
folder takes its final name once all of it is written and checked; an interrupted run continues when it is
started again.
"""

import argparse
import json
import logging
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dataset.exclusions import fingerprint as fingerprint_of_exclusions
from dataset.hdf5 import AccessError, file_size, reason_of
from dataset.sequences import EVENT_FRAMES, SPLITS, EventWindows
from dataset.sevir.catalog import SCHEMES, files_root, fingerprint, is_synthetic
from dataset.sevir.reader import EmptySplitError, Sevir, check_window
from dataset.synthetic.writer import ensure
from utils.errors import InputError
from utils.files import locked
from utils.processors import loading_processes

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when a change of code changes the cached bytes or the index


class Packed(EventWindows):
    """Windows read from a packed split; made by `open_packed` (see `EventWindows` for the items).

    Raises `InputError` on reading if the file has vanished or shrunk since.
    """

    def __init__(
        self,
        path: Path,  # uint8 (N, 49, H, W)
        entry: dict,  # the split's part of the index
        seq_len: int,  # frames
        stride: int,  # frames
        made: bool,  # by `dataset.synthetic.writer`
    ):
        super().__init__(entry["ids"], entry["skipped"], seq_len, stride, made)
        self.path = path
        self._events: np.memmap | None = None

    def read(self, event: int, first: int, stop: int) -> Tensor:
        """Frames `first` to `stop` of an event as uint8 `(T, 1, H, W)`."""
        if self._events is None:
            self._events = map_events(self.path)
        return torch.from_numpy(self._events[event, first:stop, None].copy())

    def __getstate__(self):
        return {**self.__dict__, "_events": None}  # pickling a memory map would copy the whole cache


def map_events(path: Path) -> np.memmap:
    """Map a packed split, uint8 `(N, 49, H, W)`, into memory; `InputError` if it is missing or damaged."""
    try:
        return np.lib.format.open_memmap(path, "r")
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; delete its folder and pack again.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path} ({reason_of(error, path)}); delete its folder and pack again.") from error


def cache_settings(dataset: str, data_path: str | Path, img_size: int, split_scheme: str) -> dict:
    """What a cache must have been made from to stand in for its source."""
    return {
        "format": FORMAT,
        "dataset": dataset,
        "split_scheme": split_scheme,
        "img_size": img_size,
        "catalog_sha256": fingerprint(data_path),
        "exclusions_sha256": fingerprint_of_exclusions(data_path),
    }


def cache_folder(data_path: str | Path, packed_path: str | Path | None, settings: dict) -> Path:
    """Folder of the cache with these settings, inside `packed_path` or `<data_path>/packed`."""
    caches = Path(data_path, "packed") if packed_path is None else Path(packed_path)
    return caches / "{dataset}_{split_scheme}_{img_size}".format(**settings)


def open_packed(
    dataset: str,
    split: str,
    data_path: str | Path,
    img_size: int,
    seq_len: int,
    stride: int | None,
    split_scheme: str,
    packed_path: str | Path | None = None,  # folder that holds the caches; default `<data_path>/packed`
) -> Packed | None:
    """Open the cache that holds a split; None if none fits (a mismatch is logged with its reason).

    Raises `InputError` if `packed_path` is given and holds no cache for these settings.
    """
    check_window(seq_len, stride, img_size)
    settings = cache_settings(dataset, data_path, img_size, split_scheme)
    folder = cache_folder(data_path, packed_path, settings)
    if not (folder / "index.json").is_file():
        if packed_path is not None:
            raise InputError(f"There is no packed cache {folder}; pack it with --out {packed_path} first.")
        return None
    index = _read_json(folder / "index.json")
    reason = mismatch(folder, index, split, settings, files_root(data_path))
    if reason:
        logger.warning("not using the packed cache %s: %s", folder, reason)
        return None
    stride = stride or SCHEMES[split_scheme].stride
    packed = Packed(folder / f"{split}.npy", index["splits"][split], seq_len, stride, is_synthetic(data_path))
    logger.info("using the packed cache %s, %s: %s", folder, split, packed.describe())
    return packed


def mismatch(folder: Path, index: dict, split: str, settings: dict, root: Path) -> str | None:
    """Why a cache cannot stand in for a split of the source whose files are under `root`; None if it can."""
    stored = index.get("settings", {})
    for key, value in settings.items():
        if stored.get(key) != value:
            return f"its {key} is {stored.get(key)}, not {value}"
    entry = index.get("splits", {}).get(split)
    if entry is None:
        return f"it holds no event of the {split} split"
    for name, size in entry["file_bytes"].items():
        # a file deleted after packing does no harm; one that has come or changed since does
        if file_size(root / name) not in (None, size):
            return f"{name} has changed since"
    try:
        events = map_events(folder / f"{split}.npy")
    except AccessError:
        raise
    except InputError as error:
        return str(error)
    size = settings["img_size"]
    whole = events.dtype == np.uint8 and events.shape == (len(entry["ids"]), EVENT_FRAMES, size, size)
    return None if whole else f"{split}.npy is damaged"


def pack(
    dataset: str,
    data_path: str | Path,
    img_size: int = 128,
    split_scheme: str = "official",
    packed_path: str | Path | None = None,  # folder that holds the caches; default `<data_path>/packed`
    workers: int = 0,  # processes that read and resize
) -> Path:
    """Write the cache of all splits that have events, or continue an interrupted run; returns its folder.

    A complete cache that fits its source is left as it is, one that does not is replaced.
    Raises `InputError` for an unusable source, an unwritable folder, a full disk, or if another run writes there.
    """
    settings = cache_settings(dataset, data_path, img_size, split_scheme)
    folder = cache_folder(data_path, packed_path, settings)
    sources = _sources(data_path, img_size, split_scheme)
    index, root = _read_json(folder / "index.json"), files_root(data_path)
    if not any(mismatch(folder, index, split, settings, root) for split in sources):
        return folder

    splits = {
        split: {"ids": source.event_ids, "skipped": source.skipped, "file_bytes": source.file_bytes}
        for split, source in sources.items()
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent, "wait for its end, or choose a folder with --out"):
            _write(folder, {"settings": settings, "splits": splits}, sources, workers)
    except OSError as error:
        raise InputError(f"Cannot write {folder} ({error}); choose a folder with --out.") from error
    return folder


def _write(folder: Path, plan: dict, sources: dict[str, Sevir], workers: int) -> None:
    """Write what an interrupted run of the same plan has not written, and put it in place of the folder."""
    part = folder.with_name(folder.name + ".part")
    if _read_json(part / "plan.json") != plan:
        _start(part, plan)
    for split, source in sources.items():
        plan["splits"][split]["crc32"] = _write_events(part, split, _WholeEvents(source), workers)
    _write_json(part / "index.json", plan)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    for scratch in ("plan.json", *(f"{split}.crc.npy" for split in sources)):
        (folder / scratch).unlink()


def verify(folder: Path, data_path: str | Path, img_size: int, split_scheme: str, workers: int = 0) -> list[str]:
    """Read the source again and return the ids of the events that a cache does not hold byte for byte.

    Raises `InputError` if the source no longer has the events that the cache was made from.
    """
    wrong = []
    splits = _read_json(folder / "index.json")["splits"]
    for split, source in _sources(data_path, img_size, split_scheme).items():
        entry = splits[split]
        if source.event_ids != entry["ids"]:
            raise InputError(f"{data_path} lacks files that {folder} was packed from; restore them to verify.")
        cached = map_events(folder / f"{split}.npy")
        loader = DataLoader(_WholeEvents(source), batch_size=None, num_workers=workers)
        rows = zip(entry["ids"], entry["crc32"], cached, loader, strict=True)
        for event_id, crc, stored, frames in tqdm(rows, f"verifying {split}", len(cached), disable=None):
            if not zlib.crc32(frames.numpy()) == zlib.crc32(stored) == crc:
                wrong.append(event_id)
    return wrong


class _WholeEvents(Dataset):
    """Whole events of a direct reader, uint8 `(49, H, W)`."""

    def __init__(self, source: Sevir):
        self.source = source

    def __len__(self) -> int:
        return len(self.source.event_ids)

    def __getitem__(self, event: int) -> Tensor:
        return rearrange(self.source.read(event, 0, EVENT_FRAMES), "t 1 h w -> t h w")


def _sources(data_path: str | Path, img_size: int, split_scheme: str) -> dict[str, Sevir]:
    sources, empty = {}, None
    for split in SPLITS:
        try:
            sources[split] = Sevir(data_path, split, img_size, EVENT_FRAMES, split_scheme=split_scheme)
        except EmptySplitError as error:
            empty = error
    if not sources:
        raise empty
    return sources


def _start(part: Path, plan: dict) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    size = plan["settings"]["img_size"]
    for split, entry in plan["splits"].items():
        shape = (len(entry["ids"]), EVENT_FRAMES, size, size)
        np.lib.format.open_memmap(part / f"{split}.npy", "w+", np.uint8, shape)
        np.save(part / f"{split}.crc.npy", np.full(len(entry["ids"]), -1, np.int64))
    _write_json(part / "plan.json", plan)


def _write_events(part: Path, split: str, events: _WholeEvents, workers: int) -> list[int]:
    """Write the events that are not there yet, check all against their checksums, return the checksums.

    An event counts as written once its checksum is stored: -1 stands for one to come.
    """
    path = part / f"{split}.npy"
    cached = map_events(path)
    crcs = np.load(part / f"{split}.crc.npy", mmap_mode="r+")
    todo = np.flatnonzero(crcs < 0).tolist()
    loader = DataLoader(events, batch_size=None, sampler=todo, num_workers=workers)
    progress = tqdm(loader, f"packing {split}", len(crcs), initial=len(crcs) - len(todo), disable=None)
    # written as a file: a full disk is an error here, and would be a crash of the process in a memory map
    with open(path, "r+b") as file:
        for event, frames in zip(todo, progress, strict=True):
            file.seek(cached.offset + event * cached[event].nbytes)
            file.write(frames.numpy())
            file.flush()
            crcs[event] = zlib.crc32(frames.numpy())
        os.fsync(file.fileno())

    damaged = [event for event, crc in enumerate(crcs) if zlib.crc32(cached[event]) != crc]
    if damaged:
        crcs[damaged] = -1
        raise InputError(f"{len(damaged)} events in {path} are damaged; start again to rewrite them.")
    return crcs.tolist()


def _read_json(path: Path) -> dict:
    """The dictionary in a file; an empty one if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise AccessError.of(path, error.errno) from error
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content), encoding="utf-8")
    os.replace(draft, path)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dataset pack", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", choices=("sevir", "synthetic"), default="sevir")
    parser.add_argument("--data_path", type=Path, required=True, help="folder that holds CATALOG.csv")
    parser.add_argument("--img_size", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--split", dest="split_scheme", choices=tuple(SCHEMES), default="official", help="dates of the splits"
    )
    parser.add_argument("--out", type=Path, help="folder for the caches (default: DATA_PATH/packed)")
    parser.add_argument("--num_workers", type=int, default=4, help="reading processes (default: %(default)s)")
    parser.add_argument("--verify", action="store_true", help="then read the source again and compare")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Pack a data set and, if asked, compare the cache with its source."""
    args = build_parser().parse_args(arguments)
    if args.dataset == "synthetic":
        ensure(args.data_path)
    workers = loading_processes(args.num_workers)
    folder = pack(args.dataset, args.data_path, args.img_size, args.split_scheme, args.out, workers)
    logger.info("the packed cache %s is complete", folder)
    if args.verify:
        wrong = verify(folder, args.data_path, args.img_size, args.split_scheme, workers)
        if wrong:
            raise InputError(
                f"{len(wrong)} events in {folder} differ from their source, the first is {wrong[0]}; "
                "delete the folder and pack again."
            )
        logger.info("every event equals its source")
