"""A folder belongs to one run at a time."""

import subprocess
import sys

import pytest

from utils import files
from utils.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from utils.files import locked
with locked(Path(sys.argv[1]), ""):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_locked_until_its_run_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_PATIENCE", 0)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(InputError, match=f"another run is at work in {tmp_path}; wait"):
            files.locked(tmp_path, "wait").__enter__()
        other.kill()
    for _ in range(2):
        with files.locked(tmp_path, "wait"):
            pass
