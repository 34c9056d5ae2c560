"""Stopping: signals that come together are one wish, a later one ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys

from fpsattention.training import stopping
from fpsattention.training.stopping import StopFlag

LATER = """
import signal, sys
from fpsattention.training import stopping
stopping.TOGETHER = -1.0
with stopping.StopFlag().on_signals() as stop:
    signal.raise_signal(signal.SIGTERM)
sys.exit(9)
"""


def test_a_signal_that_torchrun_passes_on_does_not_end_the_run():
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag().on_signals() as stop:
        assert not stop.requested
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # from the scheduler, torchrun, the terminal
            signal.raise_signal(number)
            assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopping.TOGETHER >= 1


def test_a_later_one_ends_it_at_once():
    child = subprocess.run([sys.executable, "-c", LATER], timeout=60)
    assert child.returncode not in (0, 9)
