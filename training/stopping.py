"""Stopping in good order: the first SIGTERM or Ctrl-C asks the loop to save and leave, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


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

        def handle(number: int, _frame: object) -> None:
            self.requested = True
            signal.signal(number, signal.SIG_DFL)  # a second one is not asked to wait

        for number in signals:
            signal.signal(number, handle)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
