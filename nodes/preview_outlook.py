"""What a schedule comes to on a video: steps, phases, tiles, and expected seconds where this card was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..kernels.attention import chosen_backends
from ..kernels.calibration import Calibration
from ..kernels.expected import RunSeconds, all_stay_dense, run_seconds
from ..kernels.grid import GridError, Tiling, TokenGrid, choose_tiling
from ..kernels.head_table import HeadTable
from ..kernels.outlook import PIXELS_PER_TOKEN, StepOutlook, sampler_sigmas, step_outlooks
from ..kernels.patterns import Window, band
from ..kernels.plan import plans_for
from ..kernels.schedule import Phase, Schedule, ScheduleError
from .host import HEAD_DIM, current_backends, current_card, host_attention
from .model_facts import model_facts
from .sentence import one_line
from .video_size import missing_problem, sampling_problem, token_grid, video_words

# What is told where no model is connected: the sizes of Wan.
KNOWN_MODELS = (("Wan 1.3B", 30, 12), ("Wan 14B", 40, 40))

NO_TABLE = (
    "the schedule says 'heads', whose density a head table decides: connect the MODEL of FPSAttention (Wan) that has "
    "the table from Load Head Patterns, or of a file that carries one."
)


@dataclass(frozen=True)
class PhaseOutlook:
    """One phase on the grid: its steps, its tiles along (t, h, w), which of them a middle query tile sees as
    ``(query, first, number)`` per axis, and its density (None: a selector decides while sampling, or a head table that
    is not known; where one is, the mean over the phase's steps)."""

    index: int
    phase: Phase
    steps: list[StepOutlook]
    tiling: Tiling
    axes: tuple[tuple[int, int, int], ...] | None
    density: float | None

    @property
    def window(self) -> str:
        """The phase's window in words."""
        if self.phase.attention == "dense":
            return "dense"
        return self.phase.selector or " ".join("all" if e is None else str(e) for e in self.phase.window)


@dataclass(frozen=True)
class Seconds:
    """Expected seconds of all self-attention of a run, one model call per step."""

    model: str
    layers: int
    heads: int
    ours: float
    dense: float | None
    steps: list[float]
    source: str


@dataclass(frozen=True)
class Preview:
    """Everything that picture and table show.

    ``unmeasured`` are the pairs of attention and backend that steps run and that have no estimate, with the tokens of
    the measurement that is too small or too large for one (None: there is none of any size).
    """

    schedule: Schedule
    video: str
    grid: TokenGrid
    shift: float
    slots: int
    tile: tuple[int, int, int] | None
    steps: list[StepOutlook]
    phases: list[PhaseOutlook]
    notes: list[str]
    seconds: list[Seconds]
    unmeasured: dict[tuple[str, str | None], int | None]
    backends: dict[str, str | None] | None = None

    @property
    def work(self) -> float | None:
        """Attention work of the run as a share of dense; None where a selector decides."""
        if any(step.density is None for step in self.steps):
            return None
        return sum(step.density for step in self.steps) / len(self.steps)

    @property
    def cumulative(self) -> list[float]:
        """Attention work after each step as a share of the whole dense run, selectors counted as dense."""
        total, values = 0.0, []
        for step in self.steps:
            total += (1.0 if step.density is None else step.density) / len(self.steps)
            values.append(total)
        return values

    @property
    def stays_dense(self) -> bool:
        """Whether there are sparse steps, and all of them stay dense on this card."""
        return all_stay_dense(self.steps, self.backends)

    @property
    def dense_steps(self) -> int:
        """Steps that run the host's own attention."""
        return sum(step.attention == "dense" for step in self.steps)


def outlook(
    schedule: Schedule,
    video: str,
    grid: TokenGrid,
    steps: int,
    shift: float,
    *,
    slots: int = 64,
    tile: tuple[int, int, int] | None = None,
    notes: list[str] | None = None,
    card: str | None = None,
    calibration: Calibration | None = None,
    models: tuple[tuple[str, int, int], ...] = KNOWN_MODELS,
    head_dim: int = HEAD_DIM,
    backends: dict[str, str | None] | None = None,
    dense: str | None = None,
    table: HeadTable | None = None,
) -> Preview:
    """Return the outlook; seconds for every (name, layers, heads) of ``models`` that ``calibration`` knows ``card``
    and ``backends`` for. ``dense`` is the attention that the host's dense steps run, ``table`` what a schedule that
    says ``heads`` needs."""
    sigmas = sampler_sigmas(steps, shift)[:-1]
    outlooks = step_outlooks(schedule, grid, sigmas, slots=slots, tile=tile, table=table)
    phases = []
    for index, phase in enumerate(schedule.phases):
        # Alone, because ends that nearly touch share their sigmas.
        alone = plans_for(Schedule((replace(phase, until=0.0),)), grid, 1, slots=slots, tile=tile)
        tiling = alone.tiling(0.0)
        here = [step for step in outlooks if step.phase == index]
        density = _by_heads(here) if phase.uses_heads else alone.density(0.0)
        phases.append(PhaseOutlook(index, phase, here, tiling, _axes(phase, tiling), density))
    calibration = calibration or Calibration()
    tiles = {"slots": slots, "tile": choose_tiling(grid, slots, tile).tile, "backends": backends}

    def expected(some: list[StepOutlook], layers: int, heads: int, **size: bool) -> RunSeconds | None:
        return run_seconds(calibration, card, schedule, some, grid.tokens, heads, layers, head_dim, **tiles, **size)

    seconds = []
    for name, layers, heads in models:
        found = expected(outlooks, layers, heads)
        if found is not None:
            beside = calibration.milliseconds(card, grid.tokens, heads, head_dim, "dense", None, 1.0)
            source = _source(found, beside and beside.entry["dense_backend"], dense)
            seconds.append(Seconds(name, layers, heads, found.seconds, found.dense_seconds, found.steps, source))
    kinds = {_runs(step, backends): step for step in outlooks}
    missing = {}
    for kind, step in kinds.items():
        if expected([step], 1, 1) is None:
            elsewhere = expected([step], 1, 1, any_size=True)
            missing[kind] = elsewhere and elsewhere.entry["tokens"]
    notes = list(notes or [])
    return Preview(schedule, video, grid, shift, slots, tile, outlooks, phases, notes, seconds, missing, backends)


def _by_heads(steps: list[StepOutlook]) -> float | None:
    """Return the mean density of steps that a head table decides, None where there is none."""
    each = [step.density for step in steps]
    return None if None in each or not each else sum(each) / len(each)


def _runs(step: StepOutlook, backends: dict[str, str | None] | None) -> tuple[str, str | None]:
    """Return what a step runs: its attention, as it is measured, and the backend; None where that is the host's own or
    not known."""
    backend = (backends or {}).get(step.attention)
    if backends is not None and backend is None:
        return "dense", None
    return ("bf16" if backend == "triton-bf16" else step.attention), backend


def _axes(phase: Phase, tiling: Tiling) -> tuple[tuple[int, int, int], ...] | None:
    """Return per axis the middle query tile, the first tile that it sees, and how many; None without a 3D window."""
    if phase.is_full or phase.window is None:
        return None
    axes = []
    for n, k in zip(tiling.pieces, Window(*phase.window).tiles(tiling)):
        seen = band(n, k)[n // 2]
        axes.append((n // 2, int(seen.argmax()), int(seen.sum())))
    return tuple(axes)


def _source(found: RunSeconds, measured: str | None, dense: str | None) -> str:
    """Return what the seconds come from; ``measured`` is the dense attention of their dense times, ``dense`` what the
    host runs now."""
    entry = found.entry
    said = f"measured {entry['measured'][:10]} on {', '.join(found.ran)} with {entry['tokens']:,} tokens and "
    said += f"{entry['heads']} heads" + (", scaled" if found.scaled else "")
    if None not in (measured, dense) and measured != dense:
        said += f"; dense times are of {measured}, the host now runs {dense}, which was not measured"
    return said + ("; sparse steps that stay dense here count as dense" if found.stays_dense else "")


def make_preview(
    schedule: Schedule | None, width: int, height: int, frames: int, steps: int, shift: float, model: Any = None
) -> tuple[Preview, str | None]:
    """Return the outlook and the card's name; raises ScheduleError, GridError or PatchError with one sentence."""
    if schedule is None:
        raise ScheduleError("the schedule is empty; choose a preset or write at least '0.00 dense'.")
    if problem := missing_problem(steps=steps, shift=shift) or sampling_problem(steps, shift):
        raise GridError(problem)
    pixels, tiles, notes, models, head_dim = PIXELS_PER_TOKEN, {}, [], KNOWN_MODELS, HEAD_DIM
    backends, table = current_backends(), None
    if model is not None:
        facts = model_facts(model)
        pixels, tiles, head_dim = facts.pixels, facts.tiles, facts.head_dim
        models = (("this model", facts.layers, facts.heads),)
        backends = chosen_backends(facts.device, facts.dtype, facts.head_dim, facts.backend)
        taken = [f"{facts.layers} layers and {facts.heads} heads", f"tokens of {facts.pixels} x {facts.pixels} pixels"]
        if tiles.get("tile"):
            taken.append(f"the trained tile {'x'.join(map(str, tiles['tile']))}")
        if facts.shift is not None:
            shift = facts.shift
            taken.append(f"shift {shift:g}")
        notes.append(f"taken from the model: {', '.join(taken)}.")
        notes += [facts.problem] if facts.problem else []
        table = facts.table
        if schedule.uses_heads and table is not None and (problem := table.misfit(facts.layers, facts.heads)):
            notes.append(one_line(problem))
            table = None
    if schedule.uses_heads and table is None:
        notes.append(NO_TABLE)
    grid = token_grid(width, height, frames, pixels)
    dense, _ = host_attention()
    calibration = Calibration.load().preferring(dense)
    notes += [calibration.problem] if calibration.problem else []
    card = current_card()
    preview = outlook(
        schedule,
        video_words(width, height, frames),
        grid,
        int(steps),
        float(shift),
        notes=notes,
        card=card,
        calibration=calibration,
        models=models,
        head_dim=head_dim,
        backends=backends,
        dense=dense,
        table=table,
        **tiles,
    )
    return preview, card
