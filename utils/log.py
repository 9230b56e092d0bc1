"""Logging of a run to the terminal and, with times, to a file."""

import logging
import sys
from pathlib import Path


def start_logging(file: Path | None = None, main: bool = True) -> None:
    """Send log messages to standard output and to `file`.

    Processes that are not `main` log errors only, and only to standard output.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    if file is not None and main:
        handlers.append(PatientFileHandler(file, delay=True))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO if main else logging.ERROR, handlers=handlers, force=True)


class PatientFileHandler(logging.FileHandler):
    """A log file that a run can do without.

    If the file cannot be written, a warning is logged once, and the run continues.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError as error:  # from opening the file
            self._give_up(error)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self._give_up(sys.exc_info()[1])

    def _give_up(self, error: BaseException | None) -> None:
        self.setLevel(logging.CRITICAL + 1)
        logging.getLogger(__name__).warning("%s ends here; the run continues: %s", self.baseFilename, error)


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """Format a plain-text table, with the first column left-aligned and others right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
