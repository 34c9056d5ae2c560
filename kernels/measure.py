"""What attention costs on this device at one size: dense and ours at several densities, in turns, within a time limit.

The benchmark of the repository (``kernels/bench``) measures everything on one kind of card for hours; this measures
what one user needs in seconds, with the same clock and the same windows, and gives the entry for the calibration.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .attention import BackendError, choose_backend
from .bench.timing import ROUNDS, Clock, Timing, short
from .calibration import REACH, is_near
from .cards import card_name, driver_version
from .contestants import Attention, Ours, Row, Size, contestants, torch_attention
from .expected import short_time
from .grid import TokenGrid, choose_tiling

# The densities that say most come first: what does not fit into the limit is left out from the end.
PERCENTS = (30, 15, 100, 50, 20, 10)
MOST_REPEATS = 40
# A size that allows fewer timed calls of everybody than this is measured on fewer heads or frames.
WANTED_REPEATS = 3
# The problem on which a processor's speed is guessed: large enough to be more than call overhead.
PROBE_GRID = (2, 24, 24)
PROBE_PERCENT = 30


@dataclass
class Measurement:
    """What came out: ``size`` is what was measured, ``wanted`` what was asked for."""

    wanted: Size
    size: Size
    rows: list[Row]
    notes: list[str]
    card: str
    kind: Ours | None = None
    host: str = ""
    date: str = ""

    @property
    def scale(self) -> float:
        """What a measured time is multiplied by for the size that was asked for; 1.0 where that was measured."""
        return self.wanted.pairs / self.size.pairs

    @property
    def near(self) -> bool:
        """Whether the times say anything about the size that was asked for."""
        return is_near(self.size.grid.tokens, self.wanted.grid.tokens)

    @property
    def single(self) -> bool:
        """Whether our times are of one call each, which are shown and not kept."""
        return any(row.timing.count < 2 for row in self.ours())

    def ours(self) -> list[Row]:
        """Return our timed rows, dense to sparse."""
        return sorted((r for r in self.rows if r.family == "ours" and r.timing), key=lambda r: -r.density)

    def strongest(self) -> Row | None:
        """Return the fastest dense row."""
        return min(
            (r for r in self.rows if r.family == "dense" and r.timing), key=lambda r: r.timing.median, default=None
        )

    def speedup(self, row: Row) -> float | None:
        """Return how many times faster than the fastest dense one ``row`` is, both from this run."""
        dense = self.strongest()
        return dense.timing.median / row.timing.median if dense and row.timing else None

    def entry(self) -> dict | None:
        """Return the entry for the calibration, or None where none of ours was timed.

        ``dense_ms`` is the host's own attention, because that is what dense steps run.
        """
        ours = self.ours()
        if not ours or self.kind is None:
            return None
        size = self.size
        dense = next((r for r in self.rows if r.name == self.host and r.timing), None)
        return {
            "card": self.card, "backend": self.kind.backend, "attention": self.kind.attention,
            "granularity": self.kind.granularity,
            "slots": size.slots, "tile": list(choose_tiling(size.grid, size.slots, size.tile).tile),
            "head_dim": size.head_dim, "tokens": size.grid.tokens, "heads": size.heads, "pattern": "window",
            "points": [[row.density, row.timing.median] for row in reversed(ours)],
            "dense_ms": dense.timing.median if dense else None, "dense_backend": dense.name if dense else None,
            "measured": self.date, "torch": torch.__version__, "triton": _triton(),
            "driver": driver_version(size.device),
        }  # fmt: skip


def measure(
    wanted: Size,
    host: Attention = torch_attention,
    host_name: str = "torch",
    tick: Callable[[float], None] = lambda share: None,
) -> Measurement:
    """Return the times at ``wanted``, or at a part of it that fits the limit, which ``notes`` then say.

    ``host(q, k, v, heads)`` is the dense attention on ``(b, s, heads * d)``. ``tick`` is called between calls with the
    share that is done; what it raises ends the measurement. A contestant that fails costs a sentence, nothing else.
    """
    result = Measurement(
        wanted, wanted, [], [], card_name(wanted.device), host=host_name,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip
    with torch.no_grad():
        try:
            if wanted.device.type not in ("cuda", "cpu"):
                result.notes.append(f"nothing was measured: on {wanted.device.type} there is no clock for it.")
                return result
            _choose_backend(result)
            clock = Clock(wanted.device)
            costs = _probe(result, clock, host, tick)
            result.size = _fitting(result, costs)
            while not _runs(result, clock, host, costs, tick):
                result.notes.append(f"{_memory_sentence(result.size)}; measured with half of the heads.")
                result.size = replace(result.size, heads=result.size.heads // 2)
        finally:
            for row in result.rows:
                row.call = None
            if wanted.device.type == "cuda":
                torch.cuda.empty_cache()
    tick(1.0)
    return result


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that the device, or the machine, has no memory left."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error).lower() for words in ("out of memory", "can't allocate memory", "not enough memory"))


def measured_of(backend: str) -> str:
    """Return the one kind of attention that is measured of ``backend``: fp8 where it has any."""
    return "bf16" if backend == "triton-bf16" else "fp8"


def _choose_backend(result: Measurement) -> None:
    size = result.wanted
    attention = measured_of(size.backend)
    try:
        name, note = choose_backend(size.backend, size.device, size.dtype, size.head_dim, attention)
    except BackendError as error:
        result.notes.append(f"ours was not measured: {error}")
        return
    if name is None:
        result.notes.append(f"ours was not measured: {note}, so steps stay dense with backend auto.")
        return
    attention = measured_of(name)
    if note:
        result.notes.append(note)
    result.kind = Ours(name, attention, "x1" if attention == "fp8" else None)


def _probe(result: Measurement, clock: Clock, host: Attention, tick: Callable[[float], None]) -> dict[str, float]:
    """Return guessed milliseconds per query-key pair by name and, all together, by family, from one head (on a
    processor of a small grid)."""
    wanted = result.wanted
    grid = wanted.grid if clock.cuda else TokenGrid(*(min(a, b) for a, b in zip(wanted.grid.shape, PROBE_GRID)))
    small = replace(wanted, grid=grid, heads=1)
    costs = {}
    for row in contestants(small, result.kind, result.host, host, (PROBE_PERCENT,)):
        tick(0.0)
        try:
            clock.once(row.call)  # compiles, or fills caches
            cost = clock.once(row.call) / (small.pairs * row.density)
            costs[row.name] = cost
            costs[row.family] = costs.get(row.family, 0.0) + cost
        except Exception as error:  # told where it is measured
            if out_of_memory(error) and clock.cuda:
                torch.cuda.empty_cache()
    return costs


def _cost(size: Size, costs: dict[str, float]) -> float:
    """Return the guessed milliseconds of calling everybody once; ``costs`` holds a sum for 'dense'."""
    return size.pairs * (costs.get("dense", 0.0) + sum(PERCENTS) / 100 * costs.get("ours", 0.0))


def _fitting(result: Measurement, costs: dict[str, float]) -> Size:
    """Return the size, with fewer heads, then fewer frames, rows and columns where the limit demands it."""
    wanted = size = result.wanted
    allowed = wanted.seconds * 1e3 / (WANTED_REPEATS + 1)
    if _cost(size, costs) <= allowed:
        return size
    size = replace(size, heads=max(1, int(size.heads * allowed / _cost(size, costs))))
    while _cost(size, costs) > allowed and size.grid.tokens > 64:
        t, h, w = size.grid.shape
        share = math.sqrt(allowed / _cost(size, costs))
        if t > 1:
            grid = TokenGrid(max(1, min(t - 1, int(t * share))), h, w)
        else:
            side = min(0.97, math.sqrt(share))
            grid = TokenGrid(1, max(1, int(h * side)), max(1, int(w * side)))
        size = replace(size, grid=grid)
    parts = []
    if size.heads != wanted.heads:
        parts.append(f"{size.heads} of {wanted.heads} heads")
    if size.grid != wanted.grid:
        shapes = ["x".join(map(str, g.shape)) for g in (size.grid, wanted.grid)]
        parts.append(
            f"a grid of {shapes[0]} = {size.grid.tokens:,} instead of {shapes[1]} = {wanted.grid.tokens:,} tokens"
        )
    whole = _cost(wanted, costs) * (WANTED_REPEATS + 1) / 1e3
    said = f"measured {' and '.join(parts)}: everything {WANTED_REPEATS} times would take about {short_time(whole)} "
    said += f"here, the limit is {wanted.seconds:g} s. "
    if is_near(size.grid.tokens, wanted.grid.tokens):
        said += "Expected times are scaled with the heads and the square of the tokens."
    else:
        least = short_time(_least_limit(wanted, costs))
        said += f"That is less than 1/{REACH} of the tokens, too few to tell expected ms or seconds for the size asked "
        said += f"for; these need a limit of about {least}."
    result.notes.append(said)
    return size


def _least_limit(wanted: Size, costs: dict[str, float]) -> float:
    """Return the seconds that are enough for one head of the fewest frames that tell something about ``wanted``."""
    t, h, w = wanted.grid.shape
    small = replace(wanted, heads=1, grid=TokenGrid(math.ceil(t / REACH), h, w))
    # What is measured in frames cannot be cut finer; the rest is what a guess may be off.
    return 1.1 * _cost(small, costs) * (WANTED_REPEATS + 1) / 1e3


def _runs(
    result: Measurement, clock: Clock, host: Attention, costs: dict[str, float], tick: Callable[[float], None]
) -> bool:
    """Measure everybody; return False where memory did not hold one of them and fewer heads may help."""
    try:
        _run(result, clock, host, costs, tick)
        starved = not any(row.timing for row in result.rows) and any(row.starved for row in result.rows)
    except Exception as error:
        if not out_of_memory(error):
            raise
        result.rows, starved = [], True
    if starved and result.size.device.type == "cuda":
        torch.cuda.empty_cache()
    if starved and result.size.heads == 1:
        result.notes.append(f"{_memory_sentence(result.size)}; choose a smaller video.")
    return not starved or result.size.heads == 1


def _run(
    result: Measurement, clock: Clock, host: Attention, costs: dict[str, float], tick: Callable[[float], None]
) -> None:
    size = result.size
    result.rows = contestants(size, result.kind, result.host, host, PERCENTS)
    limit = size.seconds * 1e3
    spent = _first_calls(result, clock, costs, tick)
    running = [row for row in result.rows if not row.note]
    total = sum(row.estimate for row in running)
    goes = max(0, min(MOST_REPEATS, int((limit - spent) / total))) if total else 0
    rounds = min(ROUNDS, goes)
    for number in range(rounds):
        repeats = goes // rounds + (number < goes % rounds)
        for row in running:
            if row.note:
                continue
            tick(min(0.99, spent / limit))
            try:
                row.samples += clock.sample(row.call, repeats)
            except Exception as error:
                _failed(row, error, size)
            spent += row.estimate * repeats
    for row in running:
        if not row.note:
            # A call for which there was no second time is a measurement all the same.
            row.timing = Timing.of(row.samples or [row.estimate])
    if goes < 2 and running:
        result.notes.append("there was time for one call each: no median, no spread; allow more seconds for them.")
    result.rows.sort(key=lambda row: (row.family == "ours", -row.density))


def _first_calls(result: Measurement, clock: Clock, costs: dict[str, float], tick: Callable[[float], None]) -> float:
    """Call everybody once, and once more where the first call compiles; return the milliseconds that count."""
    size, spent = result.size, 0.0
    limit = size.seconds * 1e3
    for row in result.rows:
        tick(min(0.99, spent / limit))
        expected = costs.get(row.name, 0.0) * size.pairs * row.density
        if spent + expected > limit:
            left = max(0.0, limit - spent) / 1e3
            row.note = f"left out: it takes about {expected / 1e3:.1f} s, {left:.1f} s of {size.seconds:g} s were left"
            continue
        try:
            row.estimate = clock.once(row.call)
            if clock.cuda:
                # What the first call took beyond this one was compilation and does not count.
                row.estimate = clock.once(row.call)
                spent += row.estimate
            spent += row.estimate
        except Exception as error:
            _failed(row, error, size)
    return spent


def _failed(row: Row, error: Exception, size: Size) -> None:
    row.starved = out_of_memory(error)
    row.note = _memory_sentence(size) if row.starved else f"failed: {short(error, 200)}"
    row.call = None
    if size.device.type == "cuda":
        torch.cuda.empty_cache()


def _memory_sentence(size: Size) -> str:
    return f"out of memory with {size.grid.tokens:,} tokens and {size.heads} head{'s' if size.heads != 1 else ''}"


def _triton() -> str | None:
    from .bench import environment

    found = environment.version("triton")
    return None if found == "not installed" else found
