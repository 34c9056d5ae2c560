"""The clock's card side on a made-up card, and what it says about calls that fail."""

from __future__ import annotations

import time

import pytest
import torch
from fpsattention.kernels import triton_runtime
from fpsattention.kernels.bench import stages
from fpsattention.kernels.bench.timing import Clock, Timing, relative_error, short


@pytest.fixture
def card(monkeypatch):
    """A clock that believes in a card whose events are the wall clock and whose memory is a list."""
    taken = {"now": 1000, "peak": 1000}

    class Event:
        def __init__(self, enable_timing=False):
            self.at = 0.0

        def record(self, stream=None):
            self.at, self.stream = time.perf_counter(), stream

        def elapsed_time(self, other):
            return (other.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: ("stream of", device))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: taken["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: taken["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: taken.update(peak=taken["now"]))
    clock = Clock(torch.device("cpu"))
    clock.cuda, clock._flush = True, torch.empty(8, dtype=torch.uint8)
    clock.taken = taken
    return clock


def test_statistics():
    timing = Timing.of([3.0, 1.0, 2.0, 10.0, 2.5])
    assert (timing.median, timing.low, timing.high, timing.best, timing.count) == (2.5, 2.0, 3.0, 1.0, 5)
    assert timing.spread == pytest.approx(0.4) and Timing.of([4.0]).spread == 0.0


def test_marks_are_made_on_the_clocks_own_card(card):
    card.device = torch.device("cuda:1")
    assert card.mark().stream == ("stream of", torch.device("cuda:1"))


def test_contestants_take_turns_and_a_failure_costs_one(card):
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    def breaks():
        raise RuntimeError("out of memory,\n on purpose")

    timings, failed = card.interleaved({"a": call("a", 0.002), "bad": breaks, "b": call("b", 0.004)}, 0.05, 10)
    assert failed == {"bad": "RuntimeError: out of memory, on purpose"}
    assert timings["a"].median >= 2 and timings["b"].median >= 4 and timings["a"].count >= 5
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns.count("a") >= 5  # not all of a and then all of b


def test_a_call_that_fails_late_is_not_timed(card):
    calls = []

    def late():
        calls.append(1)
        if len(calls) > 3:
            raise ValueError("late")

    timings, failed = card.interleaved({"late": late}, 0.01, 10)
    assert timings == {} and failed == {"late": "ValueError: late"}


def test_memory_is_what_a_call_takes_beyond_its_inputs(card):
    assert card.memory(lambda: card.taken.update(peak=1700)) == 700
    assert Clock(torch.device("cpu")).memory(lambda: None) is None


def test_host_time_is_per_call(card):
    assert 1000 <= card.host(lambda: time.sleep(0.001), repeats=5) < 50_000


def test_launches_are_grouped_by_the_module_of_their_kernel(card, monkeypatch):
    def kernel(module, name):
        function = type("Kernel", (), {"__getitem__": lambda self, grid: lambda *a, **k: time.sleep(0.002)})()
        function.fn = lambda: None
        function.fn.__module__, function.fn.__name__ = module, name
        return function

    kernels = [
        kernel("fpsattention.kernels.quantize.triton_quantize_kernels", "codes"),
        kernel("fpsattention.kernels.attention.triton_kernels", "forward"),
        kernel("fpsattention.kernels.attention.triton_backward_kernels", "dq"),
    ]
    original = triton_runtime.launch

    def call():
        for one in kernels:
            triton_runtime.launch(one, (1,), torch.empty(1))
        time.sleep(0.004)

    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: __import__("contextlib").nullcontext())
    found = stages.measure(call, card, repeats=3)
    assert set(found["kernels_ms"]) == {"codes", "forward", "dq"}
    assert all(found["ms"][stage] >= 2 for stage in ("quantize", "attention", "backward")) and found["ms"]["other"] >= 3
    assert sum(found["share"].values()) == pytest.approx(1.0)
    assert triton_runtime.launch is original


def test_what_is_not_finite_is_never_right():
    good = torch.ones(4)
    assert relative_error(good, good) == 0.0
    assert relative_error(torch.tensor([1.0, float("nan"), 1.0, 1.0]), good) == float("inf")
    assert relative_error(torch.full((4,), float("inf")), good) == float("inf")


def test_messages_are_short_lines():
    assert short(ValueError("a\n  b")) == "ValueError: a b"
    assert len(short(ValueError("x" * 5000))) == 300
