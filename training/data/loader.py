"""Samples read ahead: a thread reads the next steps' samples while a step computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class Loader:
    """Hands out the samples of a step, read before they are asked for.

    ``indices_of_step(step)`` gives (epoch, index) pairs of this process; ``depth`` steps are held ready. What is handed
    out depends on the step alone. ``waited`` is the time in seconds that ``get`` has waited in all.
    """

    def __init__(
        self,
        part: Sequence[dict[str, Any]],
        indices_of_step: Callable[[int], Sequence[tuple[int, int]]],
        depth: int = 2,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}, it must be 1 or more")
        self.part, self.indices_of_step, self.depth = part, indices_of_step, depth
        self.waited = 0.0
        self._change = threading.Condition()
        self._ready: dict[int, list[dict[str, Any]] | BaseException] = {}
        self._wanted = 0  # the step that is asked for next; this one and ``depth`` more are kept
        self._closed = False
        self._thread: threading.Thread | None = None

    def get(self, step: int) -> list[dict[str, Any]]:
        """Return the samples of ``step`` in the order of its indices; an error of reading them is raised here."""
        start = time.monotonic()
        with self._change:
            if self._closed:
                raise ValueError("the loader is closed")
            self._wanted = step
            for other in [other for other in self._ready if not step <= other <= step + self.depth]:
                del self._ready[other]
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
                self._thread.start()
            self._change.notify_all()
            while step not in self._ready:
                self._change.wait()
            found = self._ready.pop(step)
            self._wanted = step + 1
            self._change.notify_all()
        self.waited += time.monotonic() - start
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """Stop reading; what is being read is finished first."""
        with self._change:
            self._closed = True
            self._ready.clear()
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self) -> int | None:
        """Return the first step that is not there yet, None if enough are."""
        return next((s for s in range(self._wanted, self._wanted + self.depth) if s not in self._ready), None)

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._closed and self._next() is None:
                    self._change.wait()
                if self._closed:
                    return
                step = self._next()
            try:
                # Numbers first: nothing of a step is read that is not asked for.
                found = [self.part[index] for _, index in self.indices_of_step(step)]
            except BaseException as error:  # handed to the thread that asks for this step
                found = error
            with self._change:
                if step >= self._wanted and not self._closed:
                    self._ready[step] = found
                    self._change.notify_all()
