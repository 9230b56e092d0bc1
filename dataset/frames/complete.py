"""Settings that `frames.yaml` leaves to the files."""

from dataclasses import replace
from pathlib import Path

from dataset.frames.archive.archive import archive_of
from dataset.frames.archive.names import moment
from dataset.frames.config import FramesConfig, meaning_of, read_config
from dataset.frames.packages import has
from dataset.frames.values import StoredFrame
from dataset.hdf5 import AccessError
from utils.errors import InputError


def complete_config(path: str | Path) -> FramesConfig:
    """Read `frames.yaml`, completed by the first usable frame.

    The frame gives units and width where the file lacks them. Raises `InputError` that names the wrong key, or the key
    that the frame does not replace, and for units that do not fit a transform.
    """
    config = _completed(read_config(path))
    config.source(widening=1)  # which refuses such units
    return config


def _completed(config: FramesConfig) -> FramesConfig:
    if config.units and config.extent_km:
        return config
    path, frame = first_frame(config)
    georeference = frame.metadata.georeference
    found = {
        "units": config.units or frame.metadata.units,
        "extent_km": config.extent_km or (georeference and georeference.extent_km),
    }
    lacking = [key for key, value in found.items() if not value]
    if lacking:
        unread = "" if has("pyproj") else "; the width of some formats needs the package pyproj: pip install pyproj"
        raise InputError(
            f"{config.file} lacks the key {lacking[0]}, which says {meaning_of(lacking[0])}; {path} does not say it"
            f"{unread}."
        )
    return replace(config, **found)


def first_frame(config: FramesConfig) -> tuple[Path, StoredFrame]:
    """Path and content of the first usable frame of a folder.

    Raises `InputError`, of the first frame, if none is usable.
    """
    archive, fault = archive_of(config), None
    for time in map(moment, archive.times()):
        try:
            return archive.name_of(time), archive.read(time)
        except AccessError:
            raise
        except InputError as error:
            fault = fault or error
    raise fault
