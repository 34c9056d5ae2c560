"""What a profile measures: runs with one part sparse, with all of it, and all of it at a second density.

Whoever samples hands in a ``Runner``. Sensitivities are errors of the final latent on one seed, and nothing else
decides about a schedule, since errors of attention rows and of single steps may rank schedules the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..schedule import Schedule
from . import predict
from .errors import ProfileError
from .table import RowTable
from .trajectory import Segment, only, schedule_of
from .windows import Level

# What tells how much each part of a run needs its attention, the best first.
FINAL_LATENT, ONE_STEP_LOSS, ROW_ERROR = "final latent", "one-step loss", "row error"
# Less than this many dB between two schedules is noise.
MARGIN = 0.3
# Another window must lose less than this share of the row error to be tried.
CLEARLY = 0.9
# The second uniform density, over the first.
SECOND = 1.8
PSNR_NEEDS_RUNS = "the effort 'rows' measures no final latent, so it cannot aim at a PSNR; choose 'runs'."


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the mean squared error of its final latent, and the relative error of the model's output in
    its first sparse step (None where no step was compared)."""

    error: float
    one_step: float | None = None


class Runner(Protocol):
    """Samples with a schedule and compares with the dense run on the same seed."""

    def __call__(self, schedule: Schedule, what: str) -> Outcome:
        """Return the outcome; ``what`` says in words what the run is for."""
        ...


@dataclass(frozen=True)
class Goal:
    """What a proposal is for: the most PSNR at ``density``, or the least work at ``psnr``; in at most ``phases``."""

    aim: str
    density: float
    psnr: float
    phases: int


@dataclass(frozen=True)
class Candidate:
    """A schedule with its work and what was predicted and measured, in dB of the final latent; None if it was not."""

    name: str
    levels: tuple[int, ...]
    schedule: Schedule
    work: float
    predicted: float | None = None
    measured: float | None = None


@dataclass
class Study:
    """The result. ``singles`` are the mean squared errors of the final latent with one segment sparse (empty if nothing
    was sampled), ``known`` those of every run, by the levels of its segments; ``one_step`` the relative error of the
    model's output by step."""

    segments: list[Segment]
    levels: list[Level]
    probing: int
    peak: float
    table: RowTable
    goal: Goal
    singles: list[float] = field(default_factory=list)
    known: dict[tuple[int, ...], float] = field(default_factory=dict)
    one_step: dict[int, float] = field(default_factory=dict)
    prediction: predict.Prediction | None = None
    proposal: Candidate | None = None
    uniform: Candidate | None = None
    tried: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        """True if final latents were compared."""
        return bool(self.singles)

    def psnr(self, error: float) -> float:
        """Return a mean squared error of the final latent in dB."""
        return predict.psnr(error, self.peak)

    def uniform_levels(self, level: int) -> tuple[int, ...]:
        """Return ``level`` for every segment."""
        return (level,) * len(self.segments)

    def loss(self, segment: Segment) -> float | None:
        """Return the root mean square of the one-step losses that were measured in ``segment``, or None."""
        found = [self.one_step[i] for i in range(segment.first, segment.last + 1) if i in self.one_step]
        return math.sqrt(sum(loss**2 for loss in found) / len(found)) if found else None

    def row_error(self, segment: Segment) -> float:
        """Return the root mean square error of attention rows in ``segment`` at the probing level."""
        return math.sqrt(self.table.curve(segment, [self.levels[self.probing]])[0])

    @property
    def told_by(self) -> str:
        """What ``harm`` is told by: the final latent; where nothing was sampled the one-step loss, or the row error if
        not every segment has one."""
        if self.measured:
            return FINAL_LATENT
        return ROW_ERROR if any(self.loss(segment) is None for segment in self.segments) else ONE_STEP_LOSS

    def harm(self) -> list[float]:
        """Return what each segment does per step when it alone is sparse: the square of its error by ``told_by``."""
        if self.told_by == FINAL_LATENT:
            return [single / segment.steps for single, segment in zip(self.singles, self.segments)]
        error = self.loss if self.told_by == ONE_STEP_LOSS else self.row_error
        return [error(segment) ** 2 for segment in self.segments]


def check_goal(goal: Goal, levels: Sequence[Level], measured: bool) -> None:
    """Raise ProfileError for a goal that no schedule can reach, before anything is sampled."""
    least = levels[0]
    if goal.aim == "density" and not 0 < goal.density <= 1:
        raise ProfileError(f"the target density {goal.density:g} is no share; write a number between 0 and 1.")
    if goal.aim == "density" and goal.density < least.density - 1e-9:
        raise ProfileError(
            f"the target density {goal.density:g} cannot be met: the smallest window with all of time on this grid has "
            f"density {least.density:.3f}; choose that or more."
        )
    if goal.aim == "psnr" and not measured:
        raise ProfileError(PSNR_NEEDS_RUNS)
    if goal.aim == "psnr" and not math.isfinite(goal.psnr):
        raise ProfileError(f"the target PSNR {goal.psnr:g} is no number of dB; write 25, for example.")
    if goal.phases < 1:
        raise ProfileError(f"a schedule has at least one phase, got {goal.phases}.")


def probing_level(levels: Sequence[Level], goal: Goal) -> int:
    """Return the sparse level at which sensitivities are measured: the nearest to the target density, or to 25 %."""
    wanted = goal.density if goal.aim == "density" else 0.25
    sparse = [i for i, level in enumerate(levels) if not level.is_dense]
    return min(sparse, key=lambda i: abs(math.log(levels[i].density / wanted)))


def measure(study: Study, run: Runner) -> None:
    """Fill in sensitivities: each segment alone, all together, and all together at a second density."""
    segments, level = study.segments, study.levels[study.probing]
    dense = len(study.levels) - 1
    for i, segment in enumerate(segments):
        outcome = run(only(segments, i, level), f"steps {segment.name} sparse")
        study.singles.append(_finite(outcome.error))
        study.known[tuple(study.probing if j == i else dense for j in range(len(segments)))] = outcome.error
        if outcome.one_step is not None:
            study.one_step[segment.first] = outcome.one_step
    together = error_of(study, run, study.uniform_levels(study.probing), "all steps sparse")
    second = second_level(study)
    if second is not None:
        density = study.levels[second].density
        error_of(study, run, study.uniform_levels(second), f"all steps at density {density:.2f}")
    curves = [study.table.curve(segment, study.levels) for segment in segments]
    study.prediction = predict.make_prediction(study.singles, together, curves, study.probing)
    learn(study)
    _try_other_shape(study, run)


def error_of(study: Study, run: Runner, levels: tuple[int, ...], what: str) -> float:
    """Return the mean squared error of the final latent for ``levels``; runs them if that is not known yet."""
    if all(study.levels[level].is_dense for level in levels):
        return 0.0
    if levels not in study.known:
        schedule = schedule_of(study.segments, [study.levels[level] for level in levels])
        study.known[levels] = _finite(run(schedule, what).error)
    return study.known[levels]


def learn(study: Study) -> None:
    """Fit what row errors mean for the final latent to the runs that are known."""
    study.prediction = predict.bent(study.prediction, list(study.known.items()))


def second_level(study: Study) -> int | None:
    """Return the sparse level of the second uniform run: what the goal asks for, if it is not the probing level, else
    one about twice as dense; None where the grid has no other."""
    sparse = [i for i, level in enumerate(study.levels) if not level.is_dense and i != study.probing]
    if not sparse:
        return None
    below = [i for i in sparse if study.levels[i].density <= study.goal.density + 1e-9]
    if study.goal.aim == "density" and study.levels[study.probing].density > study.goal.density and below:
        return below[-1]
    wanted = SECOND * study.levels[study.probing].density
    return min(sparse, key=lambda i: abs(math.log(study.levels[i].density / wanted)))


def promising_shape(study: Study) -> Level | None:
    """Return the window without all of time that loses clearly less on attention rows than the probing window does at
    about its density, or None."""
    probing = study.levels[study.probing]
    base = study.table.mean_square(probing.text)
    others = [level for level in study.table.plan.windows if level.window and level.window[0] is not None]
    better = [
        level
        for level in others
        if level.density <= 1.1 * probing.density and study.table.mean_square(level.text) < CLEARLY**2 * base
    ]
    return min(better, key=lambda level: study.table.mean_square(level.text)) if better else None


def _try_other_shape(study: Study, run: Runner) -> None:
    """Sample with a window that leaves out time if attention rows speak for it: they alone do not decide."""
    shape = promising_shape(study)
    if shape is None:
        return
    schedule = Schedule((shape.phase(0.0),))
    ratio = study.psnr(_finite(run(schedule, f"all steps with the window {shape.text}").error))
    study.tried.append(Candidate(f"all {shape.text}", (), schedule, shape.density, None, ratio))
    gain = ratio - study.psnr(study.known[study.uniform_levels(study.probing)])
    kept = study.levels[study.probing].text
    verdict = "write it into the schedule by hand" if gain >= MARGIN else "so all of time is kept"
    study.notes.append(
        f"the window '{shape.text}' leaves out time and loses less on attention rows than '{kept}'; the final latent "
        f"says {gain:+.2f} dB with it in all steps, {verdict}."
    )


def _finite(error: float) -> float:
    if not math.isfinite(error):
        raise ProfileError(
            "the sampled latent is not finite, so nothing can be compared; check the model, cfg and the sampler first."
        )
    return error
