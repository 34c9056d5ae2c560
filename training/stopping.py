"""Stopping in good order: the first SIGTERM or Ctrl-C asks the loop to save and leave, a later one ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

# Signals that come so close together are one wish: a terminal and a scheduler signal every process, and torchrun passes
# on to its processes what it got itself.
TOGETHER = 5.0  # seconds


class StopFlag:
    """Tells the loop that a stop was asked for; the loop looks once per step."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask for a stop after the current step."""
        self.requested = True

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[StopFlag]:
        """Listen to SIGTERM and SIGINT inside the body; elsewhere than in the main thread it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        signals = [signal.SIGTERM, signal.SIGINT]
        before = {number: signal.getsignal(number) for number in signals}
        first: list[float] = []

        def handle(number: int, _frame: object) -> None:
            self.requested = True
            first.append(time.monotonic())
            if first[-1] - first[0] > TOGETHER:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for number in signals:
            signal.signal(number, handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
