"""Feeds many hostile inputs to a reader, in child processes of bounded memory and time.

`make test-all` gives each reader `FUZZ_INPUTS` = 100 inputs. The long form, which also prints the outcomes:

    FUZZ_INPUTS=10000 python -m pytest -m "not chaos" -s tests/fuzz
"""

import logging
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from utils.errors import InputError

INPUTS = int(os.environ.get("FUZZ_INPUTS", 100))
BATCH = 200  # inputs for one child process
SECONDS = 20  # for one input: far more than any needs, on a busy machine
ACCEPTED, REFUSED = "accepted", "refused"
CORNERS = (b"\0", b"\xff", b"\x7f", b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\x40")


def mutate(samples: Sequence[bytes], rng: random.Random) -> bytes:
    """A valid file with bits flipped, bytes overwritten, cut out or repeated, or with parts of another one."""
    data = bytearray(rng.choice(samples))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # headers are small, and where the interesting bytes are
        at = rng.randrange(max(1, min(len(data), rng.choice((64, 1024, len(data))))))
        length = rng.choice((1, 4, 64, 1024))
        match rng.randrange(8):
            case 0 | 1 | 2:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b""
            case 3 | 4:
                corner = rng.choice(CORNERS)
                data[at : at + len(corner)] = corner
            case 5:
                del data[at : at + length]
            case 6:
                other = rng.choice(samples)
                place = rng.randrange(len(other))
                data[at : at + length] = other[place : place + length]
            case 7 if rng.random() < 0.3:
                del data[at:]
            case 7:
                data[at:at] = data[at : at + length]
    return bytes(data)


def fuzz(name: str, write: Callable[[random.Random], None], read: Callable[[], object], megabytes: int) -> Counter:
    """`write` inputs drawn with seeds 0 to INPUTS - 1 and `read` them; returns how many were accepted and refused.

    Fails on any error but `InputError`, on a crash, and on an input that takes more than SECONDS or `megabytes`.
    """
    outcomes, peak, started = Counter(), 0.0, time.monotonic()
    for first in range(0, INPUTS, BATCH):
        seeds = range(first, min(first + BATCH, INPUTS))
        lines = list(_run_child(seeds, write, read, megabytes))
        for seed, (outcome, grown) in zip(seeds, lines, strict=False):
            assert outcome in (ACCEPTED, REFUSED), f"{name}: input {seed} ends in {outcome}"
            outcomes[outcome] += 1
            peak = max(peak, float(grown))
        assert len(lines) == len(seeds), f"{name}: input {seeds[len(lines)]} kills the process or takes too long"
    sys.stdout.write(
        f"\n{name:24} {INPUTS:7} inputs {outcomes[REFUSED]:7} refused {outcomes[ACCEPTED]:7} accepted "
        f"{time.monotonic() - started:6.0f} s {peak:6.0f} MB\n"
    )
    return outcomes


def _run_child(seeds: range, write, read, megabytes: int) -> Iterator[tuple[str, str]]:
    """Outcome and grown memory in MB of each input, fewer than seeds if the process dies."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        with os.fdopen(writing, "w", buffering=1) as results:
            _run(seeds, write, read, megabytes, results)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as results:
        for line in results:
            yield tuple(line.rstrip("\n").split("\t"))
    os.waitpid(pid, 0)


def _run(seeds: range, write, read, megabytes: int, results) -> None:
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _kilobytes("VmSize") * 1024 + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _kilobytes("VmHWM")
    for seed in seeds:
        write(random.Random(seed))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # nobody handles SIGALRM: it ends the process
        try:
            read()
            outcome = ACCEPTED
        except InputError:
            outcome = REFUSED
        except BaseException as error:
            outcome = repr(error).replace("\n", " ").replace("\t", " ")
        signal.setitimer(signal.ITIMER_REAL, 0)
        results.write(f"{outcome}\t{(_kilobytes('VmHWM') - before) / 1024}\n")


def _kilobytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])
