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
    """Command, commit of this project (None outside a checkout; `+` marks uncommitted changes), date and versions."""
    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str | None:
    """Hash of the checked-out commit of this project."""
    checkout = [f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}"]
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(["git", *checkout, *describe], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
