"""Clocks: device events on a card, the wall clock on a stand-in; medians with their spread, memory, host time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Written between two timed calls, so that a call finds its inputs in device memory and not in the L2 cache.
FLUSH_BYTES = 256 * 2**20
ROUNDS = 5


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, quartiles, the fastest, and how often it was timed."""

    median: float
    low: float
    high: float
    best: float
    count: int

    @property
    def spread(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def to_json(self) -> dict:
        """Return the numbers by name."""
        return {
            "ms": self.median, "ms_q1": self.low, "ms_q3": self.high, "ms_best": self.best,
            "count": self.count, "spread": self.spread,
        }  # fmt: skip

    @staticmethod
    def of(milliseconds: list[float]) -> Timing:
        """Return the statistics of single measurements; at least one."""
        ordered = sorted(milliseconds)
        low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.75))
        return Timing(statistics.median(ordered), low, high, ordered[0], len(ordered))


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if self.cuda else None

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def mark(self) -> object:
        """Return this moment of the device's queue, or of the wall clock; see ``between``."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: object, end: object) -> float:
        """Return the milliseconds between two marks that the device has passed."""
        return start.elapsed_time(end) if self.cuda else (end - start) * 1e3

    def once(self, call: Callable[[], object]) -> float:
        """Return the milliseconds of one call by the wall clock, device work included: for first calls."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return (time.perf_counter() - start) * 1e3

    def sample(self, call: Callable[[], object], repeats: int) -> list[float]:
        """Return the milliseconds of ``repeats`` calls, each on cold caches."""
        if not self.cuda:
            return [self.once(call) for _ in range(repeats)]
        pairs = []
        for _ in range(repeats):
            self._flush.fill_(1)
            start = self.mark()
            call()
            pairs.append((start, self.mark()))
        self.wait()
        return [self.between(*pair) for pair in pairs]

    def repeats(self, call: Callable[[], object], seconds: float, most: int) -> int:
        """Return how often ``call`` fits into ``seconds``, at least once; warms it up on the way."""
        call()
        estimate = self.once(call)
        return max(1, min(most, int(seconds * 1e3 / max(estimate, 1e-3))))

    def interleaved(
        self, calls: dict[str, Callable[[], object]], seconds: float = 1.0, most: int = 20
    ) -> tuple[dict[str, Timing], dict[str, str]]:
        """Return a timing per call, and a message per call that failed.

        The calls take turns, ``ROUNDS`` times around, so that a card that warms up slows all of them alike.
        """
        counts, samples, failed = {}, {}, {}
        # A stand-in's numbers mean nothing, and Triton's interpreter takes seconds per call: once is enough.
        rounds = ROUNDS if self.cuda else 1
        for name, call in calls.items():
            try:
                counts[name] = max(1, round(self.repeats(call, seconds, most) / rounds)) if self.cuda else 1
                samples[name] = []
            except Exception as error:  # one contestant's failure costs that contestant
                failed[name] = short(error)
        for _ in range(rounds):
            for name in list(samples):
                try:
                    samples[name] += self.sample(calls[name], counts[name])
                except Exception as error:
                    failed[name] = short(error)
                    del samples[name]
        return {name: Timing.of(values) for name, values in samples.items() if values}, failed

    def memory(self, call: Callable[[], object]) -> int | None:
        """Return the most bytes that ``call`` takes beyond what is allocated before it; None without a card."""
        if not self.cuda:
            return None
        self.wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        result = call()
        self.wait()
        peak = torch.cuda.max_memory_allocated(self.device)
        del result
        return peak - before

    def host(self, call: Callable[[], object], repeats: int = 20) -> float:
        """Return the microseconds that the host takes to issue one call, without waiting for the device.

        So few calls that the device's queue does not fill up, which would make the host wait after all.
        """
        call()
        self.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        taken = time.perf_counter() - start
        self.wait()
        return taken / repeats * 1e6


def short(error: BaseException, length: int = 300) -> str:
    """Return an exception as one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= length else text[: length - 3] + "..."


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative L2 error in float64; infinite where anything is not finite."""
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    error = float(difference / torch.linalg.vector_norm(expected.double()))
    return error if error == error else float("inf")
