"""Trainings that are killed again and again end with the weights of the one that was left alone, to the bit."""

import random
import re
import signal
import time
from collections import Counter

import pytest
import torch

from tests.chaos.lives import Life, die_at
from tests.tiny import arguments
from utils import checkpoint
from utils.pickles import load_pickle
from utils.preemption import PREEMPTED
from utils.weights import load_weights

pytestmark = pytest.mark.slow

RUN = "Singlesimvp_sevir"
STEPS = 24
WORDS = f"--epochs 0 --training_steps {STEPS} --valid_every 2 --valid_sequences 2 --keep_checkpoints 2 --resume".split()
# What can happen to a life, and how often of ten times. A cycle of two steps and a checkpoint changes files in some
# 1850 calls, most of them writes to the checkpoint; some 15 flush, rename or make a folder.
MOMENTS = {"at any time": 1, "while training": 3, "writing": 2, "naming": 3, "asked to stop": 1}
CALLS = {"writing": 4000, "naming": 40}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def undisturbed(request, storm_folder, tmp_path_factory):
    """The number of processes, how to start their training, and what comes of it."""
    processes = request.param
    folder = tmp_path_factory.mktemp("undisturbed")
    batch = ["--batch_size", str(4 // processes)]
    with Life(arguments(storm_folder, folder, *WORDS, *batch), folder / "log", processes) as life:
        assert life.wait(300), life.told()
        assert set(life.statuses) == {0}, life.told()
    return processes, batch, outcome(folder / RUN)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.chaos)])
def test_killed_trainings_lose_nothing(undisturbed, storm_folder, tmp_path, kills):
    processes, batch, expected = undisturbed
    draw = random.Random(kills + processes)
    deaths, trainings, lived = Counter(), 0, []
    while deaths.total() < kills:
        folder = tmp_path / str(trainings)
        folder.mkdir()
        argv = arguments(storm_folder, folder, *WORDS, *batch)
        alive = True
        while alive and deaths.total() < kills:
            alive = one_life(argv, folder, processes, draw, deaths)
            check_checkpoints(folder / RUN / "checkpoints")
        with Life(argv, folder / "log", processes) as life:
            assert life.wait(300), life.told()
            assert set(life.statuses) == {0}, life.told()
        assert "skipped: " not in (folder / "log").read_text()
        assert_equal(outcome(folder / RUN), expected)
        lived.append(resumed_at(folder / "log"))
        trainings += 1
    print(f"{processes} process(es): deaths {dict(deaths)}; {trainings} training(s) resumed at {lived}")  # noqa: T201


def one_life(argv, folder, processes, draw, deaths) -> bool:
    """Begin or resume the training and end it; False if it came to its end before."""
    moment = draw.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    prepare = (die_at, draw.randint(1, CALLS[moment]), moment == "writing") if moment in CALLS else ()
    with Life(argv, folder / "log", processes, prepare) as life:
        if not prepare:
            if moment != "at any time":
                life.wait_until(lambda: f"for {STEPS} steps" in life.told())
            time.sleep(draw.uniform(0, 2))
            life.signal(signal.SIGTERM if moment == "asked to stop" else signal.SIGKILL)
        assert life.wait(120, until=any if prepare else all), life.told()
        statuses = set(life.statuses) - {None}
    if statuses == {0}:
        return False
    # Asked before it trains, a process dies of the signal, as any other does; one that has lost another says so.
    assert statuses <= {-signal.SIGTERM, PREEMPTED} or -signal.SIGKILL in statuses, life.told()
    deaths[moment] += 1
    return True


def check_checkpoints(folder) -> None:
    """Whatever can be seen is whole."""
    for path in checkpoint.checkpoints(folder):
        checkpoint.verify(path)
        load_pickle(path / checkpoint.TRAINING)
    if (folder / checkpoint.BEST).exists():
        load_weights(folder / checkpoint.BEST)


def resumed_at(log) -> list[int]:
    return [int(step) for step in re.findall(r"from .+/ckpt-(\d+)$", log.read_text(), re.MULTILINE)]


def outcome(folder) -> dict:
    """Final weights and state, best weights, and the losses of every step."""
    final = folder / "checkpoints" / f"ckpt-{STEPS}"
    return {
        "averaged": load_weights(final / checkpoint.WEIGHTS),
        "best": load_weights(folder / "checkpoints" / checkpoint.BEST),
        "state": load_pickle(final / checkpoint.TRAINING),
        "losses": (folder / "losses.csv").read_text(),
    }


def assert_equal(found, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_equal(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected
