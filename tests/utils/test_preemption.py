"""The first signal is noted, its echo too, and another one ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from utils.preemption import PREEMPTED, SIGNALS, Preemption, exit_when_stopped


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_and_its_echo_are_survived(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert preemption.received == number.name
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_the_process():
    program = """
import os, signal, time
from utils import preemption
preemption.ECHO = 0.01
with preemption.Preemption():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGTERM


def test_a_thread_may_train_too():
    noted = []
    thread = threading.Thread(target=lambda: noted.append(Preemption().__enter__().received))
    thread.start()
    thread.join()
    assert noted == [None]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_may_be_repeated_is_stopped_at_once(number, tmp_path, capsys):
    marker, before = tmp_path / "run" / "PREEMPTED", signal.getsignal(number)
    with pytest.raises(SystemExit) as stop, exit_when_stopped("the same command goes on", marker):
        os.kill(os.getpid(), number)
    assert stop.value.code == PREEMPTED
    assert capsys.readouterr().err == marker.read_text() == f"stopped after {number.name}; the same command goes on\n"
    assert signal.getsignal(number) == before


def test_a_training_within_notes_the_signal_instead():
    with exit_when_stopped("again"), Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.received == "SIGTERM"
