"""What a watch must know when it starts again."""

import json
import logging
import os
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path

from utils.errors import InputError
from utils.files import Dispensable, replacing

LOG = logging.getLogger(__name__)

FILE, FORMAT = "watch.json", 1
KEPT = 1000  # forecasts to remember


@dataclass
class WatchState:
    """The state of a watch, which is written whenever it changes."""

    path: Path
    archive: str  # the `frames.yaml` that is watched
    since: datetime | None = None  # nominal time of the newest frame when the watch first began
    forecast: list[datetime] = field(default_factory=list)  # nominal times of the frames that forecasts were made from
    complaint: str | None = None  # that was logged last

    def __post_init__(self):
        self._unwritten = Dispensable(f"{self.path}")

    @classmethod
    def read(cls, folder: Path, archive: Path) -> "WatchState":
        """Read the state in the folder of the forecasts, or begin a new one.

        A damaged file is kept under another name. Raises `InputError` for the state of another archive.
        """
        path, archive = folder / FILE, str(archive.resolve())
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls(path, archive)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}.") from None
        except ValueError:
            return cls._after_damage(path, archive)
        if not isinstance(content, dict) or content.get("watch") != FORMAT:
            raise InputError(f"{path} is not the state of a watch of this version; move it, or choose another --out.")
        if content.get("archive") != archive:
            raise InputError(f"{path} is of a watch over {content.get('archive')}; choose another --out.")
        try:
            since, forecast = content["since"], list(map(datetime.fromisoformat, content["forecast"]))
            return cls(path, archive, since and datetime.fromisoformat(since), forecast, content["complaint"])
        except (KeyError, TypeError, ValueError):
            return cls._after_damage(path, archive)

    @classmethod
    def _after_damage(cls, path: Path, archive: str) -> "WatchState":
        aside = next(name for n in count(1) if not (name := path.with_name(f"{path.name}.damaged{n}")).exists())
        os.replace(path, aside)
        LOG.warning("%s is damaged and now called %s; the watch begins anew and overwrites nothing", path, aside.name)
        return cls(path, archive)

    @property
    def summary(self) -> str:
        """What was done before, for the log."""
        if self.since is None:
            return ""
        complaint = f", last complaint: {self.complaint}" if self.complaint else ""
        return f", after {len(self.forecast)} forecasts since {self.since:%Y-%m-%d %H:%M} UTC{complaint}"

    def begin(self, newest: datetime) -> None:
        """Note the newest frame, if the watch begins."""
        if self.since is None:
            self._change(since=newest)

    def is_due(self, time: datetime) -> bool:
        """Whether a forecast from frames until a time is still to be made."""
        return time >= self.since and time not in self.forecast

    def finish(self, time: datetime) -> None:
        """Note a forecast."""
        self._change(forecast=[*self.forecast, time][-KEPT:])

    def complain(self, complaint: str | None) -> None:
        """Note what was logged, None if all is well."""
        if complaint != self.complaint:
            self._change(complaint=complaint)

    def _change(self, **changes) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        content = {
            "watch": FORMAT,
            "archive": self.archive,
            "since": self.since and self.since.isoformat(),
            "forecast": [time.isoformat() for time in self.forecast],
            "complaint": self.complaint,
        }
        with self._unwritten, replacing(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
