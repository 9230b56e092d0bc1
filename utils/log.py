"""Where a run's messages go: to the terminal and, with times, to a file."""

import logging
import sys
from pathlib import Path


def start_logging(file: Path | None = None, main: bool = True) -> None:
    """Send log messages to standard output and to `file`; processes that are not `main` stay silent below errors."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    if file is not None and main:
        handlers.append(logging.FileHandler(file))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO if main else logging.ERROR, handlers=handlers, force=True)


def format_table(header: list[str], rows: list[list[str]]) -> str:
    """A plain-text table, the first column to the left and numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
