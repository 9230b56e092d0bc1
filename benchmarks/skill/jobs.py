"""Parallel commands with a thread each, which are not repeated once finished."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from utils.errors import InputError
from utils.files import replacing
from utils.processors import processors

# One thread per job: jobs that share cores slow each other many-fold. Freed memory is kept: returning it after each
# step, only to ask for it again, takes a fifth of the time. No GPU, whose time would not be counted.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
}


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how many commands run at a time."""
    parser.add_argument("--jobs", type=_positive, default=processors(), help="at a time (default: one per processor)")


class Runner:
    """Runs commands and keeps, for each, `<name>.log` and `<name>.json`.

    The latter holds the command and its processor time in seconds.
    """

    def __init__(self, root: Path, logs: Path):
        self.root = root  # where commands run
        self.logs = logs
        self.lock = threading.Lock()
        self.stopped = False
        self.running: set[int] = set()  # process ids

    def run(self, name: str, words: list[str], made: Path, last: str) -> None:
        """Run `python words...`, which makes the folder `made`, unless it is finished.

        It is finished if the folder holds the pattern `last`. Raises `InputError` if the command fails, or if the
        folder is another command's.
        """
        if self.stopped or self._is_finished(name, words, made, last):
            return
        self.logs.mkdir(parents=True, exist_ok=True)
        log, started = self.logs / f"{name}.log", time.monotonic()
        self._record(name, words, 0.0)
        status, seconds = self._execute(words, log, f"{name}: started, {log}")
        self._record(name, words, seconds)
        if self.stopped:
            return
        if status != 0:
            raise InputError(f"{name} ended with status {status}: see {log}; the same command continues.")
        self._say(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min")

    def cpu_seconds(self, name: str) -> float:
        """Return the processor time of all attempts of a command."""
        return json.loads(self._path(name).read_text())["cpu_seconds"]

    def stop(self) -> None:
        """Ask all commands to end, and start no more."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                os.kill(process, signal.SIGTERM)

    def _is_finished(self, name: str, words: list[str], made: Path, last: str) -> bool:
        path, finished = self._path(name), any(made.glob(last))
        if path.exists() and json.loads(path.read_text())["command"] == self._command(words):
            return finished
        if finished or path.exists():
            raise InputError(f"{made} was not made by the present command for {name}; delete or move it, and {path}.")
        return False

    def _execute(self, words: list[str], log: Path, message: str) -> tuple[int, float]:
        """Exit status and processor seconds of a command."""
        with log.open("ab") as file:
            with self.lock:
                if self.stopped:
                    return 0, 0.0
                process = subprocess.Popen(
                    [sys.executable, *words],
                    cwd=self.root,
                    env=os.environ | ENVIRONMENT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C arrives here, and there through `stop`
                )
                self.running.add(process.pid)
            self._say(message)
            _, status, usage = os.wait4(process.pid, 0)
        with self.lock:
            self.running.remove(process.pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def _record(self, name: str, words: list[str], seconds: float) -> None:
        path = self._path(name)
        earlier = self.cpu_seconds(name) if path.exists() else 0.0
        with replacing(path) as temporary:
            record = {"command": self._command(words), "cpu_seconds": earlier + seconds}
            temporary.write_text(json.dumps(record, indent=1) + "\n")

    def _path(self, name: str) -> Path:
        return self.logs / f"{name}.json"

    def _command(self, words: list[str]) -> str:
        """The command with what is in its argument files."""
        files = [(self.root / word[1:]).read_text() for word in words if word.startswith("@")]
        return "\n".join([" ".join(words), *files])

    def _say(self, text: str) -> None:
        with self.lock:
            tqdm.write(f"{time.strftime('%H:%M')} {text}", file=sys.stdout)


def run_together(runner: Runner, jobs: int, tasks: Iterable[Callable[[], None]]) -> None:
    """Run `jobs` tasks at a time; the first error, SIGTERM or Ctrl-C stops all."""
    with ThreadPoolExecutor(jobs) as pool, _terminated_as_interrupted():
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return int(text)
