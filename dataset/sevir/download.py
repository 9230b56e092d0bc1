"""Download SEVIR from its public bucket, without an account.

    python -m dataset download sevir --years 2019 --out data/sevir --dry_run
    python -m dataset download sevir --years 2019 --out data/sevir

The first command lists the files and their sizes. The second one writes `CATALOG.csv` and `data/vil/2019/*.h5` to the
folder, which training takes as `--data_path data/sevir`. All years of VIL are about 110 GB. After an interruption, the
same command resumes the download.
"""

import argparse
import contextlib
import http.client
import logging
import os
import re
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

from tqdm import tqdm

from dataset.sevir.catalog import catalog_rows
from utils.errors import InputError
from utils.files import locked, writable_folder

SEVIR_URL = "https://sevir.s3.amazonaws.com"
CATALOG = "CATALOG.csv"
YEARS = (2017, 2018, 2019)
TYPES = ("vil", "vis", "ir069", "ir107", "lght")

ATTEMPTS = 6  # in a row that get no further
FIRST_PAUSE = 1.0  # seconds, twice as long after each failure
TIMEOUT = 60  # seconds without an answer
PIECE = 2**20  # bytes
TRANSIENT = (429, 500, 502, 503, 504)  # HTTP status: try again

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class RemoteFile(NamedTuple):
    """A file on the server."""

    key: str  # its path below the server's address and below the output folder
    size: int  # bytes
    etag: str  # changes when the content does; may be empty


class _TryAgainError(Exception):
    """The server or the network failed in a way that may pass."""


def look_up(base_url: str, key: str) -> RemoteFile:
    """Ask the server for size and version of a file.

    Raises `InputError` if the server does not answer with them.
    """
    size, etag = _persistently(partial(_ask, f"{base_url}/{quote(key)}"))
    if not re.fullmatch("[0-9]{1,15}", size):
        raise InputError(f"{base_url} does not give the size of {key}; check --url.")
    return RemoteFile(key, int(size), etag if re.fullmatch('"[0-9a-zA-Z-]+"', etag) else "")


def _ask(url: str) -> tuple[str, str]:
    with _open(url, {}, "HEAD") as response:
        return response.headers.get("Content-Length", ""), response.headers.get("ETag", "")


def find_files(base_url: str, folder: Path, types: Sequence[str], years: Sequence[int]) -> list[RemoteFile]:
    """Download the catalogue and list the files that it names.

    Raises `InputError` if the server cannot be reached, has no such files, or names one outside the data folder.
    """
    catalog = look_up(base_url, CATALOG)
    path = fetch(base_url, catalog, folder)
    try:
        names = {row["file_name"] for row in catalog_rows(folder, types)}
    except InputError as error:
        path.unlink()  # so that the next command asks for it again
        raise InputError(f"{base_url} answers with no catalogue; check --url: {error}") from None
    return [catalog, *(look_up(base_url, f"data/{name}") for name in _select(names, types, years))]


def _select(names: set[str], types: Sequence[str], years: Sequence[int]) -> list[str]:
    """The names of some types and years, in their order."""
    found: list[str] = []
    for prefix in dict.fromkeys(f"{kind}/{year}/" for kind in types for year in years):
        below = sorted(name for name in names if name.startswith(prefix))
        if not below:
            raise InputError(f"{CATALOG} names no file {prefix}*; choose other --years or --types.")
        found += below
    if unsafe := [name for name in found if not (is_inside(name) and name.isprintable())]:
        raise InputError(f"{CATALOG} names a file {unsafe[0]!r}, which is not safe to write; check --url.")
    return found


def is_inside(file_name: str) -> bool:
    """Whether a file name stays in its folder on any system."""
    paths = PurePosixPath(file_name), PureWindowsPath(file_name)
    return not any(path.root or path.drive or ".." in path.parts for path in paths)


def fetch(base_url: str, file: RemoteFile, out: Path, progress: Callable[[int], object] = lambda _: None) -> Path:
    """Download the missing part of a file to `out/<key>`.

    `progress` is called with the number of new bytes, which is negative if the server begins again. Returns the path.
    Raises `InputError` if the server gives up, the file is larger than announced, or the disk cannot take it.
    """
    path = out / file.key
    if path.is_file() and path.stat().st_size == file.size:
        progress(file.size)
        return path
    part = _part_of(path, file)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as target:
            if target.tell() > file.size:
                target.truncate(0)
            target.seek(0, os.SEEK_END)
            progress(target.tell())
            _persistently(partial(_receive, base_url, file, target, progress), target.tell)
            target.flush()
            os.fsync(target.fileno())
        os.replace(part, path)
    return path


def download(base_url: str, files: list[RemoteFile], out: Path) -> None:
    """Download files in their order, with a progress bar.

    Raises `InputError` if that fails or the disk is too small.
    """
    missing = sum(file.size - _there(out, file) for file in files)
    free = shutil.disk_usage(out).free
    if missing > free:
        raise InputError(
            f"{out} has {format_bytes(free)} free, {format_bytes(missing)} are needed; choose fewer --years or another "
            "--out."
        )
    total = sum(file.size for file in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="downloading", disable=None) as bar:
        for file in files:
            fetch(base_url, file, out, bar.update)


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[Path]:
    """Create the output folder and keep other downloads out of it."""
    with locked(writable_folder(out, "the download"), "wait for its end or choose another --out"):
        yield out


def _receive(base_url: str, file: RemoteFile, target, progress: Callable[[int], object]) -> None:
    """Append what a file lacks; raises `_TryAgainError` when it ends early."""
    have = target.tell()
    if have < file.size:
        # If-Range: a file that has changed on the server comes from its beginning
        headers = {"Range": f"bytes={have}-"} | ({"If-Range": file.etag} if file.etag else {}) if have else {}
        with _open(f"{base_url}/{quote(file.key)}", headers) as response:
            if have and not _continues(response, have):
                target.truncate(0)
                progress(-have)
            while piece := _read(response, min(PIECE, file.size + 1 - target.tell())):
                target.write(piece)
                progress(len(piece))
    have = target.tell()
    if have > file.size:
        target.truncate(0)
        raise InputError(f"{file.key} is larger than the {file.size} bytes that {base_url} announced; start again.")
    if have < file.size:
        raise _TryAgainError(f"{file.key} ends after {have} of {file.size} bytes")


def _continues(response: http.client.HTTPResponse, position: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and found is not None and int(found[1]) == position


def _persistently(action: Callable[[], T], position: Callable[[], int] = lambda: 0) -> T:
    """Repeat an action with longer and longer pauses, until it works."""
    failures, furthest = 0, position()
    while True:
        try:
            return action()
        except _TryAgainError as error:
            failures = 1 if position() > furthest else failures + 1
            furthest = max(furthest, position())
            if failures == ATTEMPTS:
                raise InputError(f"{error}; the same command continues from here.") from None
            pause = FIRST_PAUSE * 2 ** (failures - 1)
            LOG.warning("%s; trying again in %g s", error, pause)
            time.sleep(pause)


@contextlib.contextmanager
def _open(url: str, headers: dict[str, str], method: str = "GET") -> Iterator[http.client.HTTPResponse]:
    """Open a URL.

    Raises `_TryAgainError` for failures that may pass, `InputError` for others.
    """
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in TRANSIENT:
            raise _TryAgainError(f"{url} answers {error.code} {error.reason}") from None
        reason = " ".join(str(error.reason).split())  # that of a redirection in a circle has several lines
        raise InputError(f"{url} answers {error.code} {reason}; check --url.") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise InputError(f"{url} leads to no address that can be opened ({error}); check --url.") from None
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"{url} cannot be reached ({getattr(error, 'reason', error)})") from None
    with response:
        yield response


def _read(response: http.client.HTTPResponse, size: int) -> bytes:
    """Read the next bytes of a body, none at its end."""
    try:
        return response.read(size)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"the connection failed ({error})") from None


def _there(out: Path, file: RemoteFile) -> int:
    """Bytes of a file that are on the disk already."""
    path = out / file.key
    sizes = [p.stat().st_size for p in (path, _part_of(path, file)) if p.is_file()]
    return max((size for size in sizes if size <= file.size), default=0)


def _part_of(path: Path, file: RemoteFile) -> Path:
    """Path of an incomplete file, another one for each version."""
    return path.with_name(".".join(filter(None, (path.name, re.sub(r"\W", "", file.etag)[:32], "part"))))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}); make room or choose another --out, and the same command "
            "continues from here."
        ) from None


def format_bytes(count: int) -> str:
    """A number of bytes in words."""
    return tqdm.format_sizeof(count, "B")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset download", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=("sevir",), help="data set to download")
    parser.add_argument("--years", type=int, nargs="+", choices=YEARS, default=YEARS, help="years (default: all)")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=("vil",), help="sensors (default: vil)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--url", default=SEVIR_URL, help="the bucket or a mirror of it (default: %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="list the files and their sizes, and stop")
    return parser


def _base_of(url: str) -> str:
    """The address that keys are appended to."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        fits = False
    if not fits:
        raise InputError(f"--url {url} is not an http or https address.")
    return url.rstrip("/")


def main(arguments: list[str] | None = None) -> None:
    """Download the catalogue, list the files that it names, and download them."""
    args = build_parser().parse_args(arguments)
    base_url = _base_of(args.url)
    with tempfile.TemporaryDirectory() if args.dry_run else _alone_in(args.out) as out:
        files = find_files(base_url, Path(out), args.types, args.years)
        if args.dry_run:
            for file in files:
                LOG.info("%10s  %s", format_bytes(file.size), file.key)
        LOG.info("%d files, %s", len(files), format_bytes(sum(file.size for file in files)))
        if not args.dry_run:
            download(base_url, files, args.out)
            LOG.info("%s is complete", args.out)
