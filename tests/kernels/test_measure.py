"""Measuring: what fits the limit, what is left out and said, failures that cost one row, and entries that hold."""

from __future__ import annotations

import gc
import time
import weakref
from dataclasses import replace

import pytest
import torch
from fpsattention.kernels import contestants as takes_part
from fpsattention.kernels import measure as module
from fpsattention.kernels.calibration import Calibration, interpolate
from fpsattention.kernels.calibration_file import checked
from fpsattention.kernels.contestants import Row, Size, torch_attention
from fpsattention.kernels.expected import short_time
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.measure import PERCENTS, Measurement, measure

CPU = torch.device("cpu")


def size(grid=(3, 12, 16), heads=1, **changes) -> Size:
    return Size(
        TokenGrid(*grid), heads, **({"head_dim": 64, "dtype": torch.float32, "device": CPU, "seconds": 30} | changes)
    )


def expected_ms(result: Measurement, density: float) -> float | None:
    """Return the milliseconds of ours at ``density`` for the size that was asked for, None where none was timed."""
    points = [[row.density, row.timing.median] for row in reversed(result.ours())]
    return interpolate(points, density) * result.scale if points else None


class FakeClock:
    """A clock that is told what a call takes: the milliseconds that it returns, where that is a number."""

    cuda = False

    def __init__(self, device):
        self.calls = []

    def once(self, call):
        ms = call()
        self.calls.append(ms)
        return ms

    def sample(self, call, repeats):
        return [self.once(call) for _ in range(repeats)]


def fake(monkeypatch, dense: float, ours: float, bad=()) -> None:
    """Let everybody cost milliseconds: ``dense`` and ``ours`` per thousand pairs of a head."""

    def contestants(what: Size, kind, name, host, percents):
        def call(cost, name):
            def run():
                if name in bad:
                    raise bad[name]
                return cost

            return run

        rows = [Row("host", "dense", 1.0, call=call(what.pairs * dense / 1e3, "host"))]
        for percent in percents:
            cost = what.pairs * ours / 1e3 * percent / 100
            rows.append(Row("reference", "ours", percent / 100, "all 1 1", call=call(cost, percent)))
        return rows

    monkeypatch.setattr(module, "contestants", contestants)
    monkeypatch.setattr(module, "Clock", FakeClock)


def test_what_is_measured_is_an_entry():
    result = measure(size(), host_name="torch")
    entry = result.entry()
    assert checked(entry) == entry and result.size == result.wanted and result.scale == 1.0
    densities = [density for density, _ in entry["points"]]
    assert densities == sorted(set(densities)) and densities[-1] == 1.0 and len(densities) > 3
    assert (entry["backend"], entry["attention"], entry["granularity"]) == ("reference", "fp8", "x1")
    assert entry["tokens"] == 576 and entry["heads"] == 1 and entry["tile"] == [3, 4, 4] and entry["dense_ms"] > 0
    assert all(row.timing.count >= 1 and row.call is None for row in result.rows)
    assert result.strongest().name == "torch" and result.speedup(result.strongest()) == 1.0
    calibration = Calibration()
    calibration.put(entry)
    found = calibration.milliseconds(result.card, 576, 1, 64, "fp8", "x1", 0.5)
    assert found.ms == pytest.approx(expected_ms(result, 0.5)) and not found.scaled


def test_a_weak_host_is_no_baseline():
    """A host on a slow attention is measured, and torch's own beside it: the ratio is against the faster."""

    def slow(q, k, v, heads):
        time.sleep(0.05)
        return torch_attention(q, k, v, heads)

    result = measure(size(), slow, "attention_sub_quad")
    assert {row.name for row in result.rows if row.family == "dense"} == {"attention_sub_quad", "sdpa"}
    assert result.strongest().name == "sdpa" and result.entry()["dense_backend"] == "attention_sub_quad"


def test_the_trained_tile_is_measured():
    entry = measure(size((6, 10, 8), tile=(3, 5, 4), slots=64)).entry()
    assert entry["tile"] == [3, 5, 4] and entry["slots"] == 64


def test_windows_that_are_the_same_are_measured_once():
    rows = [row for row in measure(size((1, 8, 8))).rows if row.family == "ours"]
    assert len({row.density for row in rows}) == len(rows) < len(PERCENTS)


@pytest.mark.parametrize("grid, heads", [((1, 1, 1), 1), ((1, 1, 300), 2), ((9, 1, 1), 1), ((2, 3, 5), 3)])
def test_thin_and_tiny_grids(grid, heads):
    assert checked(measure(size(grid, heads)).entry())


def test_ours_is_what_a_model_would_call(monkeypatch):
    seen = []
    monkeypatch.setattr(
        takes_part, "fps_attention", lambda q, k, v, plan, backend: seen.append((q.shape, plan, backend)) or q
    )
    result = measure(size(heads=2))
    assert {shape for shape, _, _ in seen} >= {(1, 576, 2, 64)} and {backend for *_, backend in seen} == {"reference"}
    assert {plan.attention for _, plan, _ in seen} == {"fp8"} and all(plan.smooth_k for _, plan, _ in seen)
    assert {round(plan.density, 6) for _, plan, _ in seen} >= {round(row.density, 6) for row in result.ours()}


def test_heads_are_given_up_before_frames(monkeypatch):
    fake(monkeypatch, dense=1e-3, ours=1e-3)
    wanted = size((21, 30, 52), 12, seconds=60.0)
    result = measure(wanted)
    assert result.size.grid == wanted.grid and 1 < result.size.heads < 12
    assert f"measured {result.size.heads} of 12 heads:" in result.notes[-1] and "the limit is 60 s" in result.notes[-1]
    assert result.entry()["heads"] == result.size.heads and result.scale == 12 / result.size.heads
    assert expected_ms(result, 0.3) == pytest.approx(wanted.pairs * 1e-6 * 0.3)


def test_then_frames_then_the_rest(monkeypatch):
    fake(monkeypatch, dense=1e-3, ours=1e-3)
    fewer = measure(size((21, 30, 52), 12, seconds=5.0))
    assert fewer.size.heads == 1 and 1 <= fewer.size.grid.t < 21 and fewer.size.grid.shape[1:] == (30, 52)
    assert "1 of 12 heads and a grid of" in fewer.notes[-1]
    assert fewer.near and fewer.notes[-1].endswith("scaled with the heads and the square of the tokens.")
    least = measure(size((21, 300, 520), 12, seconds=0.5))
    assert least.size.grid.t == 1 and least.size.grid.h < 300
    assert expected_ms(least, 0.2) == pytest.approx(least.wanted.pairs * 1e-6 * 0.2)
    assert " d here, the limit is 0.5 s. That is less than 1/4 of the tokens" in least.notes[-1]
    assert "for the size asked for; these need a limit of about " in least.notes[-1]


@pytest.mark.parametrize("frames, quarter", [(64, 16), (21, 6), (5, 2)])
def test_the_limit_that_is_named_is_enough(monkeypatch, frames, quarter):
    """With it there are expected times for the size asked for, and with a fifth less there are none."""
    fake(monkeypatch, dense=1e-3, ours=1e-3)
    wanted = size((frames, 30, 52), 12)
    limit = 1.1 * 4 * (quarter * 30 * 52) ** 2 * 1e-6 * (1 + sum(PERCENTS) / 100) / 1e3
    assert measure(replace(wanted, seconds=limit)).near
    short = measure(replace(wanted, seconds=limit * 0.8))
    assert not short.near and short.notes[-1].endswith(f"these need a limit of about {short_time(limit)}.")


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.0, 40.0, 5000.0])
@pytest.mark.parametrize("rate", [1e-6, 1e-4, 1e-2])
def test_the_limit_is_kept(monkeypatch, seconds, rate):
    clocks = []

    class Watched(FakeClock):
        def __init__(self, device):
            super().__init__(device)
            clocks.append(self)

    fake(monkeypatch, dense=rate, ours=2 * rate)
    monkeypatch.setattr(module, "Clock", Watched)
    result = measure(size((21, 30, 52), 12, seconds=seconds))
    # Beside the guess, which runs on a small grid, and never less than 64 tokens.
    least = 64**2 * rate / 1e3 * 6
    probe = sum(clocks[0].calls[:4])
    assert sum(clocks[0].calls) - probe <= max(seconds * 1e3, least) * 1.0001
    assert all(row.timing or row.note for row in result.rows)


def test_what_compiling_takes_does_not_count(monkeypatch):
    """On a card the first call of everybody compiles: 60 s each here, of a limit of 20 s."""
    fake(monkeypatch, dense=1e-9, ours=1e-9)
    seen: dict[object, int] = {}

    class Compiling(FakeClock):
        cuda = True

        def once(self, call):
            seen[call] = seen.get(call, 0) + 1
            return 60_000.0 if seen[call] == 1 else 100.0

    monkeypatch.setattr(module, "Clock", Compiling)
    result = measure(size(seconds=20.0))
    assert all(row.timing.median == 100.0 and row.timing.count > 5 for row in result.rows)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=repr,
)
def test_every_kind_of_missing_memory(monkeypatch, error):
    fake(monkeypatch, 1e-9, 1e-9, bad={100: error})
    note = next(row.note for row in measure(size()).rows if row.note)
    assert note == "out of memory with 576 tokens and 1 head"


def test_what_does_not_fit_is_left_out_and_named(monkeypatch):
    fake(monkeypatch, dense=1e-3, ours=1e-3)
    monkeypatch.setattr(module, "_fitting", lambda result, costs: result.wanted)
    wanted = size((21, 30, 52), 1, seconds=2.0)
    result = measure(wanted)
    left = [row for row in result.rows if row.note.startswith("left out")]
    assert left and "of 2 s were left" in left[0].note and all(row.timing is None for row in left)
    assert 0.15 not in {row.density for row in left}


def test_one_call_each_is_said_to_be_one(monkeypatch):
    fake(monkeypatch, dense=1e-3, ours=1e-3)
    monkeypatch.setattr(module, "_fitting", lambda result, costs: result.wanted)
    result = measure(size((21, 30, 52), 1, seconds=4.0))
    assert all(row.timing.count == 1 for row in result.rows) and "no median, no spread" in result.notes[-1]
    assert result.single
    twice = measure(size((21, 30, 52), 1, seconds=12.0))
    assert {row.timing.count for row in twice.rows} == {2} and not twice.single
    assert not any("one call each" in note for note in twice.notes)
    once = measure(size((21, 30, 52), 1, seconds=8.0))
    assert {row.timing.count for row in once.rows} == {1} and once.single and "no median" in once.notes[-1]


@pytest.mark.parametrize("seconds", [3.6, 1.0, 0.5])
def test_single_calls_beyond_the_limit_are_said_to_be_single(monkeypatch, seconds):
    """Nothing could be guessed, and on a card everybody is called twice before the clock counts."""
    fake(monkeypatch, dense=1e-3, ours=1e-3)
    monkeypatch.setattr(module, "_probe", lambda *args: {})
    monkeypatch.setattr(FakeClock, "cuda", True)
    result = measure(size((21, 30, 52), 1, seconds=seconds))
    assert {row.timing.count for row in result.rows if row.timing} == {1}
    assert result.notes[-1].startswith("there was time for one call each: no median, no spread")


def test_a_failure_costs_a_row(monkeypatch):
    fake(monkeypatch, 1e-9, 1e-9, bad={50: RuntimeError("PTX compilation\nfailed"), 100: ValueError("no")})
    result = measure(size())
    notes = {row.density: row.note for row in result.rows if row.note}
    assert notes == {0.5: "failed: RuntimeError: PTX compilation failed", 1.0: "failed: ValueError: no"}
    assert checked(result.entry()) and {d for d, _ in result.entry()["points"]} == {0.1, 0.15, 0.2, 0.3}


def test_dense_without_memory_leaves_no_speedup(monkeypatch):
    fake(monkeypatch, 1e-9, 1e-9, bad={"host": torch.cuda.OutOfMemoryError("CUDA out of memory")})
    result = measure(size(), host_name="host")
    assert "out of memory with 576 tokens and 1 head" in next(r.note for r in result.rows if r.family == "dense")
    assert result.strongest() is None and result.speedup(result.ours()[0]) is None
    assert result.entry()["dense_ms"] is None and checked(result.entry())


def test_where_memory_holds_nobody_there_are_fewer_heads(monkeypatch):
    real = module.contestants

    def contestants(what, *args):
        if what.heads > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(what, *args)

    monkeypatch.setattr(module, "contestants", contestants)
    result = measure(size(heads=8))
    assert result.size.heads == 2 and result.entry()["heads"] == 2 and result.scale == 4
    halved = next(note for note in result.notes if "half of the heads" in note)
    assert halved.startswith("out of memory with 576 tokens")

    def nothing(what, *args):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(module, "_probe", lambda *args: {"dense": 1e-9, "ours": 1e-9})
    monkeypatch.setattr(module, "contestants", nothing)
    result = measure(size(heads=8))
    assert result.entry() is None and result.rows == [] and "choose a smaller video" in result.notes[-1]


def test_an_error_of_our_own_is_not_hidden(monkeypatch):
    monkeypatch.setattr(module, "contestants", lambda *args: (_ for _ in ()).throw(KeyError("bug")))
    with pytest.raises(KeyError):
        measure(size())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"backend": "triton-fp8"}, "the backend 'triton-fp8' cannot run here"),
        ({"head_dim": 96}, "takes a head dimension of 64 or 128, not 96"),
        ({"dtype": torch.float64}, "takes float32"),
    ],
)
def test_a_backend_that_cannot_run_leaves_dense(changes, words):
    result = measure(size(**changes))
    assert words in result.notes[0] and result.entry() is None and result.strongest().timing.count > 0


def test_a_gpu_without_a_fast_backend_measures_what_runs_there(monkeypatch):
    """Under auto its steps stay dense, so there is no time of ours to keep; by name the reference is measured."""
    monkeypatch.setattr(module, "choose_backend", lambda *_: (None, "no fast backend runs here (why)"))
    result = measure(size())
    assert result.notes == [
        "ours was not measured: no fast backend runs here (why), so steps stay dense with backend auto."
    ]
    assert result.entry() is None and result.strongest().timing.count > 0
    monkeypatch.undo()
    assert measure(size(backend="reference")).entry()["backend"] == "reference"


def test_a_device_without_a_clock():
    result = measure(size(device=torch.device("meta")))
    assert result.rows == [] and "on meta there is no clock" in result.notes[0]


class StopError(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_it_can_be_stopped_between_any_two_calls(after):
    seen, shares = [], []

    def host(q, k, v, heads):
        seen.append(weakref.ref(q))
        return torch_attention(q, k, v, heads)

    def tick(share):
        shares.append(share)
        if len(shares) > after:
            raise StopError

    with pytest.raises(StopError):
        measure(size(), host, "host", tick)
    gc.collect()
    assert all(ref() is None for ref in seen)
    assert shares == sorted(shares) and shares[0] >= 0.0 and shares[-1] < 1.0


def test_the_share_ends_at_one():
    shares = []
    measure(size(), tick=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_a_size_beyond_a_processor_takes_its_seconds(seconds):
    started = time.monotonic()
    result = measure(size((21, 45, 80), 40, head_dim=128, seconds=seconds))
    assert time.monotonic() - started < 10 * seconds
    assert result.size.heads == 1 and result.ours() and any("40 heads" in note for note in result.notes)
