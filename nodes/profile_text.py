"""The profile as text: what was asked, what each part of the run costs, what was proposed and checked, and the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels.grid import TokenGrid
from ..kernels.profiling.cost import Effort, ModelShape
from ..kernels.profiling.ranking import agreement, rank_correlation
from ..kernels.profiling.study import Candidate, Study, promising_shape
from ..kernels.profiling.table import decibels
from .profile_meter import spoken
from .profile_sampling import Job


@dataclass(frozen=True)
class Facts:
    """What the report says about the profile besides its result."""

    grid: TokenGrid
    job: Job
    sigmas: list[float]
    shape: ModelShape
    effort: Effort
    probe_seconds: float
    step_seconds: float | None
    was_patched: bool
    trained: bool
    model_steps: int


def headline(study: Study) -> str:
    """Return the result in a line or two, for the node."""
    proposal, uniform = study.proposal, study.uniform
    phases = len(proposal.schedule.phases)
    line = f"{phases} phase{'s' * (phases > 1)}, attention work {proposal.work:.0%} of dense"
    if proposal.measured is None:
        return f"{line}: uniform, since no final latent was compared"
    line += f", final latent {_db(proposal.measured)}"
    others = [uniform, *(c for c in study.tried if c.name == "uniform above")]
    if uniform is not None and uniform.levels != proposal.levels:
        line += f" (uniform: {', '.join(f'{_db(c.measured)} at {c.work:.0%}' for c in others)})"
    return line


def profile_text(study: Study, facts: Facts) -> str:
    """Return the whole report."""
    parts = [
        _head(study, facts),
        _proposals(study),
        study.proposal.schedule.format(),
        _notes(study, facts),
        _segments(study),
        _windows(study),
        _granularities(study),
        _steps(study, facts),
        _layers(study),
        _cost(study, facts),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _head(study: Study, facts: Facts) -> str:
    job, grid, goal = facts.job, facts.grid, study.goal
    target = f"density {goal.density:g}" if goal.aim == "density" else f"PSNR {goal.psnr:g} dB"
    extra = f" + {grid.prefix + grid.suffix} extra tokens" if grid.prefix + grid.suffix else ""
    level = study.levels[study.probing]
    return (
        f"FPSAttention Profile: {headline(study)}\n"
        f"asked for {target} in at most {goal.phases} phases; {job.sampler_name}, {job.scheduler}, {job.steps} steps, "
        f"cfg {job.cfg:g}, seed {job.seed}\n"
        f"token grid {grid.t} x {grid.h} x {grid.w}{extra}, tiles of {' x '.join(map(str, _tile(study)))}; "
        f"sensitivities measured with window {level.text}, density {level.density:.3f}"
    )


def _proposals(study: Study) -> str:
    rows = [("schedule", "work", "predicted", "measured", "levels")]
    shown = [study.proposal, study.uniform, *study.tried]
    for candidate in shown:
        if candidate is not None:
            rows.append(_candidate_row(study, candidate))
    title = "Proposal, and the uniform schedules compared with it (PSNR of the final latent against the dense one)"
    if not study.measured:
        title = "Proposal: uniform, because no final latent was compared"
    return f"{title}\n{table(rows)}"


def _candidate_row(study: Study, candidate: Candidate) -> tuple[str, ...]:
    densities = " ".join(f"{study.levels[level].density:.2f}" for level in candidate.levels) or "-"
    return (candidate.name, f"{candidate.work:.3f}", _db(candidate.predicted), _db(candidate.measured), densities)


def _notes(study: Study, facts: Facts) -> str:
    notes = list(study.notes)
    if facts.was_patched:
        notes.insert(
            0, "the MODEL carried an FPSAttention patch, which was left aside; the model below it was profiled."
        )
    if facts.trained:
        notes.append(
            "the file says which schedule the model was trained with: dense sampling, the measure here, is not what "
            "it is best at. Keep its own schedule unless you know better."
        )
    if not study.measured:
        notes.append(
            "errors of attention rows and of single steps can rank parts of the run the other way round than the final "
            "latent does, so they propose no phases; use the effort 'runs' for that."
        )
    elif study.prediction is not None and len(study.segments) > 1:
        power = study.prediction.power
        kind = "add up as if independent" if 0.8 <= power <= 1.25 else "reinforce each other" if power < 0.8 else ""
        notes.append(f"errors of different parts {kind or 'partly hide each other'} (exponent {power:.2f}).")
        notes.append(f"the final error goes with the row error to the power {study.prediction.bend:.2f}.")
    if study.measured:
        notes.append("one seed is one sample: differences below a few tenths of a dB mean nothing.")
    if "ancestral" in facts.job.sampler_name or "sde" in facts.job.sampler_name or facts.job.sampler_name == "lcm":
        notes.append("this sampler adds noise; the seed makes it the same in every run, so runs can be compared.")
    return "".join(f"- {note}\n" for note in notes)


def _segments(study: Study) -> str:
    rows = [("steps", "sigma", "alone sparse", "harm", "per step", "one-step loss", "row error", "proposed")]
    total = sum(study.singles) or 1.0
    errors = [study.row_error(segment) for segment in study.segments]
    for i, segment in enumerate(study.segments):
        rows.append(
            (
                segment.name,
                f"{segment.sigmas[0]:.3f}-{segment.sigmas[-1]:.3f}",
                _db(study.psnr(study.singles[i])) if study.measured else "-",
                f"{study.singles[i] / total:.1%}" if study.measured else "-",
                f"{study.singles[i] / total / segment.steps:.1%}" if study.measured else "-",
                _percent(study.loss(segment)),
                f"{errors[i]:.1%}",
                f"{study.levels[study.proposal.levels[i]].density:.2f}",
            )
        )
    text = "Parts of the run, each alone sparse: harm is its share of the squared error of the final latent"
    text += f"{'' if study.measured else f' (not measured; the picture shows the {study.told_by})'}\n{table(rows)}"
    if study.measured:
        harm = study.harm()
        text += f"Beside the final latent, row error {_ranking(harm, errors)}; "
        losses = [study.loss(segment) for segment in study.segments]
        known = [i for i, loss in enumerate(losses) if loss is not None]
        losses = [losses[i] for i in known]
        text += f"one-step loss {_ranking([harm[i] for i in known], losses)}.\n"
    return text


def _ranking(truth: Sequence[float], other: Sequence[float]) -> str:
    correlation = rank_correlation(truth, other)
    number = "" if correlation is None else f" (rank correlation {correlation:+.2f})"
    return agreement(correlation) + number


def _windows(study: Study) -> str:
    rows = [("window t h w", "density", "error", "SNR", "cosine")]
    plan = study.table.plan
    shown = sorted(plan.windows, key=lambda level: level.density)
    for level in shown:
        rows.append((level.text, f"{level.density:.3f}", *_errors(study, level.text)))
    text = f"Windows: relative L2 error of attention rows, mean of all probed steps and layers\n{table(rows)}"
    best = promising_shape(study)
    if best is not None and not study.measured:
        kept = study.levels[study.probing].text
        text += f"On these rows '{best.text}', which leaves out time, loses less than '{kept}': worth a try.\n"
    elif best is None and any(level.window[0] is not None for level in plan.windows):
        text += "Windows that leave out time lose no less at this density, so all of time is kept.\n"
    return text


def _granularities(study: Study) -> str:
    rows = [("granularity", "error", "SNR", "cosine")]
    for name in study.table.plan.granularities:
        rows.append((name, *_errors(study, name)))
    return f"FP8 granularities on all keys (one scale per token, channel, 64 tokens, cube of tiles)\n{table(rows)}"


def _errors(study: Study, name: str) -> tuple[str, str, str]:
    relative = study.table.mean_square(name) ** 0.5
    cosine = study.table.cosine(name)
    return f"{relative:.2%}", f"{decibels(relative):.1f} dB", f"{cosine[cosine == cosine].mean():.5f}"


def _steps(study: Study, facts: Facts) -> str:
    level = study.levels[study.probing]
    rows = [("step", "sigma", "window error", "window cosine", "fp8 x1", "fp8 x1 SNR", "one-step loss")]
    window, cosine = study.table.relative(level.text), study.table.cosine(level.text)
    fp8 = study.table.relative("x1")
    for i, step in enumerate(study.table.steps):
        quantized = _mean(fp8[i])
        rows.append(
            (
                str(step),
                f"{facts.sigmas[step]:.3f}",
                f"{_mean(window[i]):.2%}",
                f"{_mean(cosine[i]):.4f}",
                f"{quantized:.3%}",
                f"{decibels(quantized):.1f} dB",
                _percent(study.one_step.get(step)),
            )
        )
    return f"Steps: mean of the probed layers, window {level.text}\n{table(rows)}"


def _layers(study: Study) -> str:
    level = study.levels[study.probing]
    window, fp8 = study.table.relative(level.text).T, study.table.relative("x1").T
    rows = [("layer", "window error", "worst step", "fp8 x1")]
    for i, layer in enumerate(study.table.layers):
        worst = max(range(len(window[i])), key=lambda j: -math.inf if math.isnan(window[i][j]) else window[i][j])
        rows.append((str(layer), f"{_mean(window[i]):.2%}", str(study.table.steps[worst]), f"{_mean(fp8[i]):.3%}"))
    return f"Layers: mean of the probed steps, window {level.text}\n{table(rows)}"


def _cost(study: Study, facts: Facts) -> str:
    effort, plan = facts.effort, study.table.plan
    text = (
        f"Cost: {plan.count} query rows in {len(study.table.steps)} steps x {len(study.table.layers)} of "
        f"{facts.shape.layers} layers, with {len(effort.one_step)} one-step losses at most {effort.total:.2g} dense "
        f"steps (planned); the row probes took {facts.probe_seconds:.2g} s"
    )
    if facts.step_seconds:
        text += (
            f" = {facts.probe_seconds / facts.step_seconds:.2g} steps; {facts.model_steps} steps were sampled in all"
        )
        text += f", {spoken(facts.model_steps * facts.step_seconds)} at {facts.step_seconds:.2g} s a dense step"
    return text + ".\n"


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows as text with aligned columns; the first is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _mean(values) -> float:
    known = [float(value) for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _tile(study: Study) -> tuple[int, int, int]:
    return study.table.plan.tiling.tile


def _db(value: float | None) -> str:
    if value is None:
        return "-"
    return "exact" if math.isinf(value) else f"{value:.2f} dB"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
