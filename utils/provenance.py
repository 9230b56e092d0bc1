"""Where a result comes from: the code, the command, the weights."""

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
    """Command, commit of this project (None outside a checkout), date and versions."""
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str | None:
    """Hash of the checked-out commit of this project; `+` and a hash of the changes since, if there are any."""
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
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
