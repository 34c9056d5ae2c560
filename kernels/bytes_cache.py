"""A cache that is bounded by the memory of what it holds, not by its number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Whatever says how much memory it takes."""

    @property
    def bytes(self) -> int:
        """The memory that goes when this goes."""
        ...


T = TypeVar("T", bound=Sized)


class BytesCache(Generic[T]):
    """Values by key; beyond ``limit`` bytes those go that were not asked for the longest, but never the newest."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of ``key``, made where it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            value = self._values[key] = make()
            self.bytes += value.bytes
            while self.bytes > self.limit and len(self._values) > 1:
                self.bytes -= self._values.popitem(last=False)[1].bytes
            return value

    def clear(self) -> None:
        """Drop them all."""
        with self._lock:
            self._values.clear()
            self.bytes = 0
