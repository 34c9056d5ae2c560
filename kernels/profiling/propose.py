"""The proposal: the best schedule by what final latents said, run once, and held against uniform ones of equal work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from . import choose, predict
from .study import MARGIN, Candidate, Runner, Study, error_of, learn
from .trajectory import mean_density, schedule_of

# A uniform schedule whose work is below this share of the proposal's is no equal of it.
NEAR = 0.95
# A target PSNR counts as met from here on, and is tried for this many times.
MET, ATTEMPTS = 0.2, 4
# Of two schedules for one PSNR, the one with more phases must save this much of the dense work.
SAVING = 0.02


def propose(study: Study, run: Runner | None) -> None:
    """Choose a schedule for the goal, run it and the uniform one of equal work, and keep the better.

    The proposal never has more phases than its gain over fewer is worth, and the uniform schedule is kept unless the
    proposal beats it by more than noise. Without ``run`` nothing was sampled, so nothing is known about the final
    latent: then the uniform schedule is proposed.
    """
    if run is None:
        _uniform(study)
    elif study.goal.aim == "psnr":
        _toward_psnr(study, run)
    else:
        _toward_density(study, run)


def _uniform(study: Study) -> None:
    densities = [level.density for level in study.levels]
    best = max(i for i, density in enumerate(densities) if density <= study.goal.density + 1e-9)
    study.uniform = _candidate(study, "uniform", study.uniform_levels(best))
    study.proposal = replace(study.uniform, name="proposed")


def _toward_density(study: Study, run: Runner) -> None:
    work = study.goal.density
    uniform = choose.least_error(_frontier(study, 1), work)
    study.uniform = _run(study, run, _candidate(study, "uniform", uniform.levels))
    learn(study)
    best = _plainest(study, lambda choices: choose.least_error(choices, work))
    if best.levels == uniform.levels:
        study.proposal = replace(study.uniform, name="proposed")
        if len(study.segments) > 1:
            study.notes.append(
                f"no schedule of up to {study.goal.phases} phases is expected to gain {MARGIN:g} dB over the uniform "
                "one, so the uniform one is proposed."
            )
        return
    _settle(study, run, best.levels)


def _toward_psnr(study: Study, run: Runner) -> None:
    goal, aimed, tries = study.goal, study.goal.psnr, []
    for attempt in range(ATTEMPTS):
        best = _plainest_work(study, study.prediction.limit(predict.mean_squared(aimed, study.peak)))
        if any(best.levels == earlier.levels for earlier in tries):
            break
        candidate = _run(study, run, _candidate(study, f"try {attempt + 1}", best.levels))
        tries.append(candidate)
        missing = goal.psnr - candidate.measured
        if all(study.levels[level].is_dense for level in best.levels) or -1.0 <= missing <= MET:
            break
        # What was measured corrects the prediction; what it still gets wrong here is asked for on top.
        learn(study)
        wrong = study.psnr(study.prediction.error(best.levels)) - candidate.measured
        aimed = goal.psnr + (wrong if math.isfinite(wrong) else 0.0)
    study.tried += tries
    met = [c for c in tries if c.measured >= goal.psnr - MET]
    chosen = min(met, key=lambda c: c.work) if met else max(tries, key=lambda c: c.measured)
    if not met:
        study.notes.append(
            f"{goal.psnr:g} dB were not reached in {len(tries)} tries; the best of them is proposed. Aim at less, or "
            "at a density."
        )
    elif chosen.work >= 1:
        study.notes.append(
            f"no sparse schedule is expected to reach {goal.psnr:g} dB: the mildest window on this grid (density "
            f"{study.levels[-2].density:.2f}) in a single part of the run loses more. Dense is proposed; aim at less."
        )
    uniform = choose.least_error(_frontier(study, 1), chosen.work)
    if uniform is None or chosen.work >= 1 or uniform.levels == chosen.levels:
        study.uniform = replace(chosen, name="uniform")
        study.proposal = replace(chosen, name="proposed")
        return
    study.uniform = _run(study, run, _candidate(study, "uniform", uniform.levels))
    _settle(study, run, chosen.levels)


def _settle(study: Study, run: Runner, levels: tuple[int, ...]) -> None:
    """Run the proposal, and the next uniform schedule above it if the one below is far off; keep the proposal if it
    beats what uniform windows measured at its work, between those two, by more than noise."""
    proposal = _candidate(study, "proposed", levels)
    uniform = study.uniform
    if uniform.work < NEAR * proposal.work:
        above = next(i for i, level in enumerate(study.levels) if level.density >= proposal.work - 1e-9)
        if not study.levels[above].is_dense:
            study.tried.append(_run(study, run, _candidate(study, "uniform above", study.uniform_levels(above))))
    proposal = _run(study, run, proposal)
    if proposal.measured == uniform.measured:
        gain = 0.0
    else:
        equal = _uniform_decibels(study, proposal.work, measured=True)
        gain = proposal.measured - max(uniform.measured, equal if math.isfinite(equal) else -math.inf)
    keeps_target = study.goal.aim != "psnr" or uniform.measured >= study.goal.psnr - MET
    if gain < MARGIN and keeps_target:
        study.tried.append(replace(proposal, name="rejected"))
        study.proposal = replace(uniform, name="proposed")
        study.notes.append(
            f"the schedule that was expected to be best was measured {gain:+.2f} dB against uniform ones at equal "
            f"work, less than the {MARGIN:g} dB that count, so the uniform one is proposed."
        )
        return
    study.proposal = proposal


def _frontier(study: Study, phases: int) -> list[choose.Choice]:
    steps = sum(segment.steps for segment in study.segments)
    weights = [segment.steps / steps for segment in study.segments]
    densities = [level.density for level in study.levels]
    return choose.frontier(densities, weights, study.prediction.terms, min(phases, len(study.segments)))


def _plainest(study: Study, pick: Callable[[Sequence[choose.Choice]], choose.Choice]) -> choose.Choice:
    """Return the choice with the fewest phases that is within the margin of the best with all phases allowed; a
    uniform one counts as what uniform windows come to at the work of that best."""
    options = [pick(_frontier(study, phases)) for phases in range(1, study.goal.phases + 1)]
    ratios = [study.psnr(study.prediction.error(option.levels)) for option in options]
    best = int(np.argmax(ratios))
    limit = ratios[best] - MARGIN
    if options[0].levels == options[best].levels or _uniform_decibels(study, options[best].work) >= limit:
        return options[0]
    return next(option for option, ratio in zip(options[1:], ratios[1:]) if ratio >= limit)


def _plainest_work(study: Study, error: float) -> choose.Choice:
    """Return the choice of least work within ``error``, with the fewest phases that are worth it."""
    options = [choose.least_work(_frontier(study, phases), error) for phases in range(1, study.goal.phases + 1)]
    least = min(option.work for option in options)
    return next(option for option in options if option.work <= least + SAVING)


def _uniform_decibels(study: Study, work: float, measured: bool = False) -> float:
    """Return what uniform windows come to at ``work``, in dB: between two windows, in between. Predicted, or measured
    where they were."""
    points = []
    for i, level in enumerate(study.levels):
        levels = study.uniform_levels(i)
        error = study.known.get(levels) if measured else None
        ratio = study.psnr(study.prediction.error(levels) if error is None else error)
        if math.isfinite(ratio):
            points.append((level.density, ratio))
    return float(np.interp(work, *zip(*points))) if points else math.inf


def _candidate(study: Study, name: str, levels: tuple[int, ...]) -> Candidate:
    chosen = [study.levels[i] for i in levels]
    predicted = None if study.prediction is None else study.psnr(study.prediction.error(levels))
    return Candidate(name, levels, schedule_of(study.segments, chosen), mean_density(study.segments, chosen), predicted)


def _run(study: Study, run: Runner, candidate: Candidate) -> Candidate:
    error = error_of(study, run, candidate.levels, f"the {candidate.name} schedule")
    return replace(candidate, measured=study.psnr(error))
