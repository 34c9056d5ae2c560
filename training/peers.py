"""The processes of a run when they handle a state on disk: they agree on what happened over a group of their own.

The group is gloo's whatever the training uses, so that a thread can write while training goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")
# A process may wait this long for another one to write its share of a large state to a slow disk.
PATIENCE = timedelta(hours=2)


class Peers:
    """``rank`` and ``size`` of a run, and its group; one process alone has none."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.group = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None

    @property
    def is_main(self) -> bool:
        """True on the process that makes and names directories."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in order of rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def each(self, action: Callable[[], T]) -> list[T]:
        """Do something on every process and return all results; raises on all when it fails on one."""
        value, error = None, None
        try:
            value = action()
        except Exception as caught:
            error = caught
        told = self.gather((value, None if error is None else _portable(error)))
        if error is not None:
            raise error
        for _, other in told:
            if other is not None:
                raise other
        return [value for value, _ in told]

    def main(self, action: Callable[[], T]) -> T:
        """Do something on the main process only and return its result on all; raises on all when it fails."""
        return self.each(lambda: action() if self.is_main else None)[0]


def _portable(error: Exception) -> Exception:
    """Return an error that another process can be told of: the same class where a text makes one, else RuntimeError."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror or str(error))
    try:
        return type(error)(str(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
