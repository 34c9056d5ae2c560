"""A profile: measure a run segment by segment, propose a schedule, and hold it against the uniform one of equal work.

Whoever samples hands in a ``Runner``. With effort 'runs' sensitivities are errors of the final latent on one seed; a
schedule is proposed by these alone, since errors of rows and of single steps may rank schedules the other way round.
With effort 'rows' nothing is sampled, and the proposal is an estimate that says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from ..schedule import Schedule
from . import choose, predict
from .errors import ProfileError
from .table import RowTable
from .trajectory import Segment, mean_density, only, schedule_of
from .windows import Level

# A schedule with more phases must be predicted, and measured, this much better than one with fewer; less is noise.
MARGIN = 0.3
# Another window must lose less than this share of the row error to be tried.
CLEARLY = 0.9
# A uniform schedule whose work is below this share of the proposal's is no equal of it.
NEAR = 0.95
# A target PSNR counts as met from here on, and is tried for this many times.
MET, ATTEMPTS = 0.2, 3


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
    """The result. ``singles`` and ``together`` are mean squared errors of the final latent (empty, None with effort
    'rows'), ``estimate`` the summed squared step errors that stand in for them there."""

    segments: list[Segment]
    levels: list[Level]
    probing: int
    peak: float
    table: RowTable
    goal: Goal
    singles: list[float] = field(default_factory=list)
    together: float | None = None
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
        raise ProfileError("the effort 'rows' measures no final latent, so it cannot aim at a PSNR; choose 'runs'.")
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
    """Fill in sensitivities: each segment alone, then all together, at the probing level."""
    segments, level = study.segments, study.levels[study.probing]
    for i, segment in enumerate(segments):
        outcome = run(only(segments, i, level), f"steps {segment.name} sparse")
        study.singles.append(_finite(outcome.error))
        if outcome.one_step is not None:
            study.one_step[segment.first] = outcome.one_step
    if len(segments) > 1:
        study.together = _finite(run(schedule_of(segments, [level] * len(segments)), "all steps sparse").error)
    else:
        study.together = study.singles[0]
    curves = [study.table.curve(segment, study.levels) for segment in segments]
    study.prediction = predict.make_prediction(study.singles, study.together, curves, study.probing)
    _try_other_shape(study, run)


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
    gain, kept = ratio - study.psnr(study.together), study.levels[study.probing].text
    verdict = "write it into the schedule by hand" if gain >= MARGIN else "so all of time is kept"
    study.notes.append(
        f"the window '{shape.text}' leaves out time and loses less on attention rows than '{kept}'; the final latent "
        f"says {gain:+.2f} dB with it in all steps, {verdict}."
    )


def estimate(study: Study, step_sizes: Sequence[float]) -> None:
    """Fill in the stand-in of effort 'rows': what a step loses, squared, times its squared size in sigma.

    What it loses is the one-step loss where every segment has one, else the row error, which cannot tell how much a
    step makes of its attention.
    """
    curves = [study.table.curve(segment, study.levels) for segment in study.segments]
    losses = [segment_loss(study, segment) for segment in study.segments]
    if None in losses:
        losses = [math.sqrt(curve[study.probing]) for curve in curves]
        study.notes.append("one-step losses are missing in some parts, so the estimate stands on attention rows alone.")
    singles = [
        sum(step_sizes[i] ** 2 for i in range(segment.first, segment.last + 1)) * loss**2
        for segment, loss in zip(study.segments, losses)
    ]
    study.prediction = predict.make_prediction(singles, None, curves, study.probing)


def segment_loss(study: Study, segment: Segment) -> float | None:
    """Return the root mean square of the one-step losses that were measured in ``segment``, or None."""
    known = [study.one_step[i] for i in range(segment.first, segment.last + 1) if i in study.one_step]
    return math.sqrt(sum(loss**2 for loss in known) / len(known)) if known else None


def propose(study: Study, run: Runner | None) -> None:
    """Choose a schedule, run it and the uniform one of equal work (without ``run``: choose only), and keep the better.

    The proposal never has more phases than its gain over fewer is worth, and the uniform schedule is kept unless the
    proposal beats it by more than noise.
    """
    if study.goal.aim == "psnr":
        _toward_psnr(study, run)
    else:
        _toward_density(study, run)


def _toward_density(study: Study, run: Runner | None) -> None:
    work = study.goal.density
    uniform = choose.least_error(_frontier(study, 1), work)
    best = _plainest(study, lambda choices: choose.least_error(choices, work))
    study.uniform = _run(study, run, _candidate(study, "uniform", uniform))
    if best.levels == uniform.levels:
        study.proposal = replace(study.uniform, name="proposed")
        if len(study.segments) > 1:
            study.notes.append(
                f"no schedule of up to {study.goal.phases} phases is expected to gain {MARGIN:g} dB over the uniform "
                "one, so the uniform one is proposed."
            )
        return
    candidate = _candidate(study, "proposed", best)
    if run is not None and study.uniform.work < NEAR * candidate.work:
        _compare_above(study, run, candidate.work)
    _settle(study, run, candidate)


def _compare_above(study: Study, run: Runner, work: float) -> None:
    """Run the next uniform schedule above ``work`` too: where windows come in large steps, the one below is far off."""
    above = next(i for i, level in enumerate(study.levels) if level.density >= work - 1e-9)
    if study.levels[above].is_dense:
        return
    levels = (above,) * len(study.segments)
    error = study.prediction.error(levels)
    choice = choose.Choice(levels, study.levels[above].density, study.prediction.limit(error))
    study.tried.append(_run(study, run, _candidate(study, "uniform above", choice)))


def _toward_psnr(study: Study, run: Runner | None) -> None:
    goal, aimed = study.goal, study.goal.psnr
    for attempt in range(ATTEMPTS):
        error = study.prediction.limit(predict.mean_squared(aimed, study.peak))
        best = _plainest_work(study, error)
        candidate = _run(study, run, _candidate(study, f"try {attempt + 1}", best))
        study.tried.append(candidate)
        missing = goal.psnr - candidate.measured
        if all(study.levels[level].is_dense for level in best.levels) or -1.0 <= missing <= MET:
            break
        # The prediction was off by this much here; ask for that much more, or less.
        aimed += missing
    met = [c for c in study.tried if c.measured >= goal.psnr - MET]
    chosen = min(met, key=lambda c: c.work) if met else max(study.tried, key=lambda c: c.measured)
    if not met:
        study.notes.append(
            f"{goal.psnr:g} dB were not reached in {ATTEMPTS} tries; the best of them is proposed. Aim at less, or at "
            "a density."
        )
    elif chosen.work >= 1:
        study.notes.append(
            f"no sparse schedule is expected to reach {goal.psnr:g} dB: the mildest window on this grid (density "
            f"{study.levels[-2].density:.2f}) in a single segment loses more. Dense is proposed; aim at less."
        )
    uniform = choose.least_error(_frontier(study, 1), chosen.work)
    if uniform is None or chosen.work >= 1 or uniform.levels == chosen.levels:
        study.uniform = replace(chosen, name="uniform")
        study.proposal = replace(chosen, name="proposed")
        return
    study.uniform = _run(study, run, _candidate(study, "uniform", uniform))
    _settle(study, None, replace(chosen, name="proposed"))


def _settle(study: Study, run: Runner | None, candidate: Candidate) -> None:
    """Run the candidate and keep it, or the uniform schedule if that is measured as good.

    What the candidate gains only because windows come in steps, so that the uniform schedule falls short of its work,
    is not counted.
    """
    candidate = _run(study, run, candidate)
    uniform = study.uniform
    if candidate.measured is None or uniform.measured is None:
        study.proposal = candidate
        return
    gain = 0.0 if candidate.measured == uniform.measured else candidate.measured - uniform.measured
    gain -= max(0.0, _uniform_decibels(study, candidate.work) - _uniform_decibels(study, uniform.work))
    keeps_target = study.goal.aim != "psnr" or uniform.measured >= study.goal.psnr - MET
    if gain < MARGIN and keeps_target:
        study.tried.append(replace(candidate, name="rejected"))
        study.proposal = replace(uniform, name="proposed")
        study.notes.append(
            f"the schedule that was expected to be best was measured {gain:+.2f} dB against the uniform one at equal "
            f"work, less than the {MARGIN:g} dB that count, so the uniform one is proposed."
        )
        return
    study.proposal = candidate


def _frontier(study: Study, phases: int) -> list[choose.Choice]:
    steps = sum(segment.steps for segment in study.segments)
    weights = [segment.steps / steps for segment in study.segments]
    densities = [level.density for level in study.levels]
    return choose.frontier(densities, weights, study.prediction.terms, min(phases, len(study.segments)))


def _plainest(study: Study, pick) -> choose.Choice:
    """Return the choice with the fewest phases that is within the margin of the best with all phases allowed; a
    uniform one counts as what uniform windows come to at the work of that best."""
    options = [pick(_frontier(study, phases)) for phases in range(1, study.goal.phases + 1)]
    best = min(options, key=lambda option: _error(study, option))
    limit = study.psnr(_error(study, best)) - MARGIN
    if options[0].levels == best.levels or _uniform_decibels(study, best.work) >= limit:
        return options[0]
    return next(option for option in options[1:] if study.psnr(_error(study, option)) >= limit)


def _uniform_decibels(study: Study, work: float) -> float:
    """Return what uniform windows are predicted to come to at ``work``, in dB: between two windows, in between."""
    densities = [level.density for level in study.levels]
    found = [study.psnr(study.prediction.error([i] * len(study.segments))) for i in range(len(densities))]
    finite = [(density, ratio) for density, ratio in zip(densities, found) if math.isfinite(ratio)]
    if not finite:
        return math.inf
    return float(np.interp(work, *zip(*finite)))


def _plainest_work(study: Study, error: float) -> choose.Choice:
    """Return the choice of least work within ``error``; more phases must save 2 % of dense work each."""
    options = [choose.least_work(_frontier(study, phases), error) for phases in range(1, study.goal.phases + 1)]
    least = min(option.work for option in options)
    return next(option for option in options if option.work <= least + 0.02)


def _error(study: Study, choice: choose.Choice) -> float:
    return study.prediction.from_sum(choice.error)


def _candidate(study: Study, name: str, choice: choose.Choice) -> Candidate:
    levels = [study.levels[i] for i in choice.levels]
    predicted = study.psnr(_error(study, choice)) if study.measured else None
    work = mean_density(study.segments, levels)
    return Candidate(name, choice.levels, schedule_of(study.segments, levels), work, predicted)


def _run(study: Study, run: Runner | None, candidate: Candidate) -> Candidate:
    if run is None:
        return candidate
    if candidate.schedule.is_dense:
        return replace(candidate, measured=math.inf)
    known = _known(study, candidate)
    if known is None:
        known = _finite(run(candidate.schedule, f"the {candidate.name} schedule").error)
    return replace(candidate, measured=study.psnr(known))


def _known(study: Study, candidate: Candidate) -> float | None:
    """Return the error of a schedule that was run already."""
    sparse = [i for i, level in enumerate(candidate.levels) if not study.levels[level].is_dense]
    if study.together is not None and all(level == study.probing for level in candidate.levels):
        return study.together
    if len(sparse) == 1 and candidate.levels[sparse[0]] == study.probing and study.singles:
        return study.singles[sparse[0]]
    return None


def _finite(error: float) -> float:
    if not math.isfinite(error):
        raise ProfileError(
            "the sampled latent is not finite, so nothing can be compared; check the model, cfg and the sampler first."
        )
    return error
