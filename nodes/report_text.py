"""The report as text: what ran in every step, and every reason for staying dense."""

from __future__ import annotations

from .head_use import density_lines, online_line, pattern_lines, run_head_use, use_line
from .record import Run, Step
from .report_times import timings
from .settings import Settings

_HEAD = "step  sigma   phase  attention   window         density  backend        sparse/dense  seconds"


def report_text(settings: Settings, runs: list[Run], names: dict[str, str]) -> str:
    """Return the report of ``runs``; ``names`` maps node ids to what the user calls them."""
    lines = [f"FPSAttention: schedule from {settings.source}, {settings.choices}"]
    lines += ["  " + line for line in settings.schedule.format().splitlines() if not line.startswith("#")]
    if not runs:
        lines += ["", "This model has not sampled yet: connect the sampler's LATENT to this node."]
    for number, run in enumerate(runs, 1):
        lines += ["", *_run_lines(settings, number, run, names)]
    return "\n".join(lines) + "\n"


def report_summary(settings: Settings, runs: list[Run], names: dict[str, str]) -> str:
    """Return the report without its table, for a place that cannot align columns."""
    lines = [f"Schedule from {settings.source}, {settings.choices}"]
    for number, run in enumerate(runs, 1):
        use = run_head_use(settings, run)
        lines += [headline(run, number, names), *layouts(settings, run), *([] if use is None else [use_line(use)])]
        lines += [*findings(run), *timings(run)]
    return "\n".join(lines if runs else [*lines, "This model has not sampled yet."])


def headline(run: Run, number: int, names: dict[str, str]) -> str:
    """Return who sampled, how many steps, and the attention work that it came to."""
    planned = len(run.sample_sigmas) - 1 if run.sample_sigmas else len(run.steps)
    line = f"{title_of(run, number, names)}: {planned} steps, attention work {run.work:.1%} of dense"
    if run.stopped:
        steps = sorted(run.steps.values(), key=lambda step: -step.sigma)
        at = f"in step {steps[-1].index}" if steps and steps[-1].index is not None else "before its first step"
        return f"{line} (stopped {at}: {run.stopped})"
    return line if run.finished else line + " (not finished)"


def findings(run: Run) -> list[str]:
    """Return every reason for staying dense with its number of calls, what selectors chose, and the run's notes; one
    line each."""
    reasons: dict[str, int] = {}
    for step in run.steps.values():
        for reason, calls in step.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + calls
    lines = [f"{calls} calls stayed dense: {why}" if calls else f"skipped: {why}" for why, calls in reasons.items()]
    if not run.steps:
        lines.append("no model call was recorded")
    elif not reasons:
        steps = run.steps.values()
        chosen = ["the phases that the schedule makes dense"] * any(step.attention == "dense" for step in steps)
        table = any(step.dense for step in steps if step.heads)
        other = any(step.dense for step in steps if step.attention != "dense" and not step.heads)
        chosen += ["the blocks in dense_blocks, or whose heads all see everything"] * table
        chosen += ["the blocks in dense_blocks"] * (other and not table)
        lines.append("nothing stayed dense" + (f" but {' and '.join(chosen)}" if chosen else ""))
    online = online_line(steps_in_order(run))
    lines += [] if online is None else [online]
    return lines + [f"note: {note}" for note in run.notes if not any(reason in note for reason in reasons)]


def steps_in_order(run: Run) -> list[Step]:
    """Return the run's steps from the highest sigma down."""
    return sorted(run.steps.values(), key=lambda step: -step.sigma)


def layouts(settings: Settings, run: Run) -> list[str]:
    """Return one line per token grid of the run: size, tokens in front and behind, tile as trained and as used."""
    lines = []
    for step in run.steps.values():
        t, h, w = step.grid
        text = f"grid {t}x{h}x{w} = {t * h * w} tokens"
        if step.prefix:
            text += f", {step.prefix} in front"
        if step.suffix:
            text += f", {step.suffix} behind"
        if step.tile is not None:
            text += f"; {step.tiles} tiles of {'x'.join(map(str, step.tile))}{_trained_tile(settings, step)}"
        if text not in lines:
            lines.append(text)
    # A dense step says nothing about tiles: drop its line where a sparse step of the same grid says more.
    return [a for a in lines if not any(b.startswith(a + ";") for b in lines)]


def title_of(run: Run, number: int, names: dict[str, str]) -> str:
    """Return what the user knows the run by."""
    name = names.get(run.node_id or "", "")
    where = f" ({name}, node {run.node_id})" if name else ""
    return f"Run {number}{where}"


def _trained_tile(settings: Settings, step: Step) -> str:
    trained = settings.header.tile if settings.header is not None else None
    if trained is None or step.tile[0] * step.tile[1] * step.tile[2] > settings.header.slots:
        return ""
    same = tuple(trained) == tuple(step.tile)
    return " (as trained)" if same else f" (trained {'x'.join(map(str, trained))})"


def _run_lines(settings: Settings, number: int, run: Run, names: dict[str, str]) -> list[str]:
    lines = [headline(run, number, names)]
    lines += ["  " + line for line in layouts(settings, run)]
    lines.append(_HEAD)
    lines += [_step_line(step) for step in steps_in_order(run)]
    if (use := run_head_use(settings, run)) is not None:
        lines += [f"  {use_line(use)}", *_indented(pattern_lines(use))]
        lines += [
            "  density of each head in percent, the mean over these steps",
            *_indented(density_lines(use.density)),
        ]
    return lines + ["  " + line for line in (*findings(run), *timings(run))]


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _step_line(step: Step) -> str:
    index = "-" if step.index is None else step.index
    attention = step.attention + (f" {step.granularity}" if step.granularity else "")
    window = step.window if step.attention != "dense" else ""
    calls = f"{step.sparse}/{step.dense}" if step.calls else "skipped"
    density = f"{step.density:.1%}" if step.calls else "-"
    return (
        f"{index:>4}  {step.sigma:<6.4f}  {step.phase + 1:>5}  {attention:<10}  {window:<13}  {density:>6}  "
        f"{step.backend or '-':<13}  {calls:>12}  {step.seconds:>7.2f}"
    )
