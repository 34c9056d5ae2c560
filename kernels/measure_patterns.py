"""What patterns cost on this device at one size: uniform calls of each, in turns, within a time limit.

``measure`` times windows for one user's preview; this times any patterns for a search, with the same clock, on the
tiles and lists that a head table's layers run. It gives entries for the calibration: the milliseconds of a call in
which every head has the pattern, under the pattern's words.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from .attention import BackendError, choose_backend, fps_attention, resolve_backend
from .bench import environment
from .bench.timing import ROUNDS, Clock, Timing, short
from .calibration_file import MAX_WORD
from .cards import card_name, driver_version
from .expected import short_time
from .grid import Tiling
from .pattern_text import format_pattern
from .patterns import Full, Pattern, Skip, pattern_pairs
from .plan import AttentionPlan, BlockLists, Layout, Plans
from .schedule import Schedule

# What a layer whose heads are all full costs: it runs without lists, so it is another thing than the pattern 'full'.
FULL_LAYER = "full layer"
# Timed calls of a pattern that are enough for a median.
LEAST_CALLS = 3
MOST_CALLS = 40
# On a card everything that is timed gets about as long as this, and at least LEAST_CALLS calls.
SECONDS_EACH = 0.5
SIGMA = 0.5


@dataclass(frozen=True)
class Call:
    """What a pattern's time depends on beside the pattern and the tiling: the device and the attention.

    ``granularity`` counts for 'fp8' alone. ``heads`` are those of a layer: few heads do not fill a card.
    """

    device: torch.device | str
    heads: int
    head_dim: int = 128
    attention: str = "fp8"
    granularity: str | None = "x1"
    dtype: torch.dtype = torch.bfloat16
    backend: str = "auto"
    smooth_k: bool = True

    def kind(self) -> tuple[str, str, str | None]:
        """Return backend, attention and granularity as a calibration keys them; raises BackendError where none runs."""
        backend, _ = resolve_backend(self.backend, self.device, self.dtype, self.head_dim, self.attention)
        plain = self.attention == "bf16" or backend == "triton-bf16"
        return (backend, "bf16", None) if plain else (backend, "fp8", self.granularity)

    def words(self) -> str:
        """Return the attention and where it runs, for people."""
        what = f"fp8 {self.granularity}" if self.attention == "fp8" else self.attention
        return f"{what} attention on {card_name(self.device)}"


@dataclass
class PatternMeasurement:
    """``entries`` for the calibration, and ``notes`` that say what was not measured and why."""

    entries: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Row:
    """One thing that is timed: ``heads`` heads under ``name``, whose exact density is ``density``."""

    name: str
    heads: int
    density: float
    call: Callable[[], object]
    estimate: float = 0.0
    samples: list[float] = field(default_factory=list)
    note: str = ""


def pattern_key(pattern: Pattern) -> str:
    """Return the word under which a calibration holds ``pattern``: its own words, or where they are too long for a
    calibration, their beginning and a hash of all."""
    words = format_pattern(pattern)
    if len(words) <= MAX_WORD:
        return words
    return f"{words[: MAX_WORD - 20]} #{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def pattern_plan(patterns: Sequence[Pattern], tiling: Tiling, call: Call, pattern_of_head: np.ndarray) -> AttentionPlan:
    """Return the plan of a call in which head h uses ``patterns[pattern_of_head[0, h]]``, as a head table makes it."""
    quantized = call.attention == "fp8"
    granularity = call.granularity if quantized else None
    cube = int(granularity[1:]) if (granularity or "").startswith("x") else 1
    per_pattern = np.array([pattern_pairs(p, tiling) for p in patterns]) / float(tiling.grid.tokens) ** 2
    return AttentionPlan(
        grid=tiling.grid,
        tiling=tiling,
        attention=call.attention,
        granularity=granularity,
        smooth_k=call.smooth_k,
        density=float(per_pattern[pattern_of_head].mean()),
        layout=Layout.of(tiling, cube, call.device),
        lists=BlockLists.from_patterns(list(patterns), tiling, pattern_of_head, call.device),
    )


def random_inputs(tiling: Tiling, call: Call, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q, k, v ``(1, S, H, D)`` from N(0, 1); k has a mean per channel, as trained models have one."""
    generator = torch.Generator(torch.device(call.device)).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=call.device, dtype=torch.float32).to(call.dtype)

    shape = (1, tiling.grid.tokens, call.heads, call.head_dim)
    q, k, v = (normal(*shape) for _ in range(3))
    return q, k + normal(1, 1, call.heads, call.head_dim), v


def measure_pattern_costs(
    patterns: Sequence[Pattern],
    tiling: Tiling,
    call: Call,
    *,
    seconds: float = 60.0,
    clock: Clock | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> PatternMeasurement:
    """Return the times of ``patterns`` on ``tiling``, each as a call in which all heads have it.

    With Skip among them, it is timed with a quarter of the heads too: the line through both gives what a call costs
    beyond its heads. With Full among them, a layer whose heads are all full is timed as it runs. What does not fit into
    ``seconds``, or fails, is left out and said. ``tick`` gets the share that is done; what it raises ends it.
    """
    result = PatternMeasurement()
    device = torch.device(call.device)
    if device.type not in ("cuda", "cpu") and clock is None:
        result.notes.append(f"Nothing was measured: on {device.type} there is no clock for it.")
        return result
    try:
        name, note = choose_backend(call.backend, device, call.dtype, call.head_dim, call.attention)
    except BackendError as error:
        result.notes.append(f"Nothing was measured: {error}")
        return result
    if name is None:
        result.notes.append(f"Nothing was measured: {note}, so steps stay dense with backend auto.")
        return result
    if note:
        result.notes.append(note)
    call = replace(call, device=device, backend=name)
    clock = clock or Clock(device)
    rows: list[_Row] = []
    with torch.no_grad():
        try:
            rows = _rows(tuple(dict.fromkeys(patterns)), tiling, call)
            _first_calls(rows, clock, seconds, tick)
            _rounds(rows, clock, seconds, tick)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            size = f"{tiling.grid.tokens:,} tokens and {call.heads} heads"
            result.notes.append(f"Nothing was measured: out of memory with {size}.")
            rows = []
        finally:
            for row in rows:
                row.call = None
            if device.type == "cuda":
                torch.cuda.empty_cache()
    tick(1.0)
    result.entries = [_entry(row, tiling, call) for row in rows if len(row.samples) >= LEAST_CALLS]
    result.notes += [f"'{row.name[:60]}' was not measured: {row.note}." for row in rows if row.note]
    return result


def _rows(patterns: tuple[Pattern, ...], tiling: Tiling, call: Call) -> list[_Row]:
    """Return what is timed: Full and Skip first, because all else is told from them where time runs out."""
    order = sorted(patterns, key=lambda p: not isinstance(p, Full | Skip))
    q, k, v = random_inputs(tiling, call)
    plan = pattern_plan(order, tiling, call, np.zeros((1, call.heads), dtype=np.int32))
    rows = []

    def add(name: str, density: float, heads: int, plan: AttentionPlan) -> None:
        part = [x[:, :, :heads] for x in (q, k, v)]
        rows.append(_Row(name, heads, density, lambda: fps_attention(*part, plan, backend=call.backend)))

    for number, pattern in enumerate(order):
        density = pattern_pairs(pattern, tiling) / float(tiling.grid.tokens) ** 2
        for heads in [call.heads, *([_few(call.heads)] if isinstance(pattern, Skip) and call.heads > 1 else [])]:
            chosen = torch.full((1, heads), number, dtype=torch.int32, device=call.device)
            uniform = replace(plan, density=density, lists=replace(plan.lists, pattern_of_head=chosen))
            add(pattern_key(pattern), density, heads, uniform)
        if isinstance(pattern, Full) and call.attention == "fp8":
            phase = Schedule.parse(f"0.00 fp8 {call.granularity} all all all")
            whole = Plans(phase, tiling.grid, call.heads, tiling.slots, smooth_k=call.smooth_k)
            add(FULL_LAYER, 1.0, call.heads, whole.at(SIGMA, device=call.device))
    return rows


def _few(heads: int) -> int:
    return max(1, heads // 4)


def _first_calls(rows: list[_Row], clock: Clock, seconds: float, tick: Callable[[float], None]) -> None:
    """Call everything once, and once more where the first call compiles; leave out what will not fit, or fails."""
    spent, limit = 0.0, seconds * 1e3
    with contextlib.suppress(Exception):  # what fails here fails below, where it is told
        # The first call of a process loads code: seconds that are no pattern's.
        clock.once(min(rows, key=lambda row: row.density).call)
    for row in rows:
        tick(min(0.99, spent / limit))
        if spent >= limit:
            row.note = f"{seconds:g} s were used up"
            continue
        try:
            row.estimate = clock.once(row.call)
            if clock.cuda:
                row.estimate = clock.once(row.call)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # one pattern's failure costs that pattern
            row.note = f"it failed: {short(error, 200)}"
            continue
        # What is begun must be finished: one call was made, and three are timed.
        spent += row.estimate * (1 + LEAST_CALLS)
        if spent > limit:
            row.note = (
                f"{LEAST_CALLS} calls take {short_time(row.estimate * LEAST_CALLS / 1e3)}, the limit is {seconds:g} s"
            )
            spent -= row.estimate * LEAST_CALLS


def _rounds(rows: list[_Row], clock: Clock, seconds: float, tick: Callable[[float], None]) -> None:
    running = [row for row in rows if not row.note]
    total = sum(row.estimate for row in running) or 1.0
    left = seconds * 1e3 - total
    rounds = max(LEAST_CALLS, min(ROUNDS, int(left / total)))
    for number in range(rounds):
        for row in running:
            if row.note:
                continue
            tick(min(0.99, number / rounds))
            each = min(SECONDS_EACH * 1e3, left * row.estimate / total) / max(row.estimate, 1e-3)
            repeats = max(1, min(MOST_CALLS, round(each)) // rounds) if clock.cuda else 1
            try:
                row.samples += clock.sample(row.call, repeats)
            except (torch.cuda.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:
                row.note, row.samples = f"it failed: {short(error, 200)}", []


def _entry(row: _Row, tiling: Tiling, call: Call) -> dict:
    backend, attention, granularity = call.kind()
    triton = environment.version("triton")
    return {
        "card": card_name(call.device), "backend": backend, "attention": attention, "granularity": granularity,
        "slots": tiling.slots, "tile": list(tiling.tile), "head_dim": call.head_dim, "tokens": tiling.grid.tokens,
        "heads": row.heads, "pattern": row.name, "points": [[row.density, Timing.of(row.samples).median]],
        "dense_ms": None, "dense_backend": None,
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__, "triton": None if triton == "not installed" else triton,
        "driver": driver_version(torch.device(call.device)),
    }  # fmt: skip
