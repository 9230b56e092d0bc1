"""Origin of a result: code, command and weights."""

import hashlib
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def provenance() -> dict[str, str | None]:
    """Return command, commit (None outside a checkout), date and versions."""
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str | None:
    """Return the hash of the checked-out commit.

    If there are changes since, `+` and a hash of them follow.
    """
    head, changes = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    if not head:
        return None
    return head.strip() + (f"+{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else "")


def _git(*command: str) -> str | None:
    checkout = [f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}"]
    try:
        found = subprocess.run(["git", *checkout, *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return found.stdout if found.returncode == 0 else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
