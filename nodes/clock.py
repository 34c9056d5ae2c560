"""How long each block of a model takes, measured without waiting for the device.

On a CPU that is a clock; on a GPU two events per block, read after the run. Nothing here runs in compiled code: the
marks around the blocks are kept out of it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import torch

# Events are read as soon as they have passed, so that a run of any length holds few of them.
_MANY = 512


class Timed(Protocol):
    """What takes a block's seconds: a step of the record."""

    def add_block(self, block: int, seconds: float) -> None:
        """Count ``seconds`` for ``block``."""
        ...


class BlockClock:
    """Adds the seconds of blocks to their steps; ``kind`` is what it measures on the model's device, or None."""

    def __init__(self) -> None:
        self.kind: str | None = None
        self.device: torch.device | None = None
        self._pending: deque[tuple[Timed, int, Any, Any, torch.device]] = deque()
        self._spare: list[Any] = []

    def prepare(self, device: torch.device) -> None:
        """Choose how blocks on ``device``, the model's, are timed: another card may be the current one."""
        if device == self.device:
            return
        self.kind = device.type if device.type in ("cpu", "cuda") else None
        self.device = device
        # An event belongs to the card that it was first recorded on.
        self._spare.clear()

    def wait(self) -> None:
        """Wait for the model's device, if it was ever used."""
        if self.kind == "cuda" and torch.cuda.is_initialized():
            torch.cuda.synchronize(self.device)

    def moment(self) -> Any:
        """Return now, as the device will see it; None where it cannot be told."""
        if self.kind == "cpu":
            return time.perf_counter()
        if self.kind is None:
            return None
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def add(self, step: Timed, block: int, start: Any, end: Any) -> None:
        """Count the time between two moments as ``block`` of ``step``."""
        if start is None or end is None:
            return
        if self.kind == "cpu":
            step.add_block(block, end - start)
            return
        self._pending.append((step, block, start, end, self.device))
        if len(self._pending) >= _MANY:
            self._read()

    def finish(self) -> None:
        """Read everything that is left, after the device has been waited for, and let the events go."""
        self._read()
        self._pending.clear()
        self._spare.clear()

    def _read(self) -> None:
        while self._pending and self._pending[0][3].query():
            step, block, start, end, device = self._pending.popleft()
            step.add_block(block, start.elapsed_time(end) / 1e3)
            if device == self.device:
                self._spare += (start, end)
