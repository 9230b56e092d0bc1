"""The first signal is noted, its echo too, and another one ends the process."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from utils import preemption
from utils.preemption import PREEMPTED, SIGNALS, Preemption, Stopped, exit_when_stopped


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_and_its_echo_are_survived(number):
    before = signal.getsignal(number)
    with Preemption() as noted:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert noted.received == number.name
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


def test_a_stop_that_a_callback_loses_is_repeated(monkeypatch, capsys):
    monkeypatch.setattr(preemption, "AGAIN", 0.1)
    before = signal.getsignal(signal.SIGALRM)

    def stopped_in_a_callback():
        with contextlib.suppress(Stopped):  # as compiled code does
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    with pytest.raises(SystemExit) as stop, exit_when_stopped("again"):
        stopped_in_a_callback()
    assert stop.value.code == PREEMPTED
    assert "stopped after SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_training_within_notes_the_signal_instead():
    with exit_when_stopped("again"), Preemption() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted.received == "SIGTERM"
