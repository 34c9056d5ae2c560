"""The preview as text: every step, every phase with its window in tiles, and what it comes to."""

from __future__ import annotations

from ..kernels.expected import pace_words, short_time
from ..kernels.measure import measured_of
from .preview_outlook import PhaseOutlook, Preview

# Steps in a row that are alike are told in one line beyond this many.
MAX_LINES = 60


def density_words(phase: PhaseOutlook) -> str:
    """Return the density of ``phase`` as text; a selector's is only known while sampling, a head table's with it."""
    if phase.density is not None:
        return f"{phase.density:.1%}"
    return "in the head table" if phase.phase.uses_heads else "chosen while sampling"


def headline(preview: Preview) -> str:
    """Return in one sentence what the schedule comes to."""
    count, dense = len(preview.steps), preview.dense_steps
    what = f"{count} step{'s' if count != 1 else ''}: {dense} dense, {count - dense} sparse"
    if preview.work is None:
        return f"{what}; {_who_decides(preview)}."
    return f"{what}; attention work {preview.work:.1%} of dense."


def _who_decides(preview: Preview) -> str:
    unknown = [preview.schedule.phases[step.phase] for step in preview.steps if step.density is None]
    if all(phase.uses_heads for phase in unknown):
        return "a head table, which is not connected, decides the attention work"
    return "a selector decides the attention work while sampling"


def grid_line(preview: Preview) -> str:
    """Return the video and its tokens."""
    grid = "x".join(map(str, preview.grid.shape))
    tokens = f"{preview.grid.tokens:,} token{'s' if preview.grid.tokens != 1 else ''}"
    return f"{preview.video}: grid {grid} = {tokens}; shift {preview.shift:g}"


def phase_line(phase: PhaseOutlook) -> str:
    """Return the phase's steps, attention and window in one line."""
    if not phase.steps:
        steps = "no step"
    else:
        first, last = phase.steps[0].index, phase.steps[-1].index
        steps = f"step {first}" if first == last else f"steps {first}-{last}"
    attention = " ".join(filter(None, [phase.phase.attention, phase.phase.granularity]))
    window = "" if phase.phase.attention == "dense" else f", {phase.window}: {density_words(phase)}"
    return f"phase {phase.index + 1} (until sigma {phase.phase.until:g}), {steps}: {attention}{window}"


def tiles_line(phase: PhaseOutlook) -> str:
    """Return which tiles a query tile sees, along time, height and width."""
    if phase.phase.attention == "dense":
        return "the host's own attention: every token sees every token"
    if phase.axes is None:
        if phase.phase.uses_heads:
            return "every head sees the tiles of its own pattern, from a head table"
        return "every token sees every token" if phase.phase.is_full else "a selector chooses the tiles while sampling"
    tile = "x".join(map(str, phase.tiling.tile))
    seen = ", ".join(f"{k} of {n} along {axis}" for axis, (_, _, k), n in zip("thw", phase.axes, phase.tiling.pieces))
    return f"sees {seen} (tiles of {tile} tokens)"


def seconds_lines(preview: Preview, card: str | None) -> list[str]:
    """Return the expected seconds, or what to do to get them."""
    if not preview.seconds:
        return [f"No expected seconds: {_why_none(preview, f' on {card}' if card else '')}"]
    lines = []
    for found in preview.seconds:
        text = f"Expected self-attention of {found.model} ({found.layers} layers, {found.heads} heads): "
        text += short_time(found.ours)
        if found.dense is not None:
            text += f" instead of {short_time(found.dense)} dense"
            text += f", {pace_words(found.dense / found.ours)}," if found.ours else ""
        lines.append(f"{text} for one model call per step ({found.source}).")
    if card:
        lines.append(
            f"On {card}. A cfg above 1 means two model calls per step; everything else in a step comes on top."
        )
    return lines


def _why_none(preview: Preview, where: str) -> str:
    if preview.stays_dense:
        return f"sparse steps stay dense{where}; FPSAttention Check says what is missing."
    if preview.work is None:
        return f"{_who_decides(preview)}."
    # Dense attention is measured beside every other.
    missing = {kind: tokens for kind, tokens in preview.unmeasured.items() if kind[0] != "dense"}
    missing = missing or {("dense attention", None): preview.unmeasured.get(("dense", None))}
    kinds, sizes = list(missing), list(missing.values())
    names = [" on ".join(filter(None, kind)) for kind in kinds]
    never = [name for name, (attention, backend) in zip(names, kinds) if backend and attention != measured_of(backend)]
    if never:
        return f"FPSAttention Benchmark does not measure {' and '.join(never)}."
    backends = " and once with ".join(backend for _, backend in kinds if backend)
    if None in sizes:
        what = f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'} not measured{where} yet"
    else:
        tokens = " and ".join(f"{name} with {size:,} tokens" for name, size in zip(names, sizes))
        what = f"this size was not measured{where}, only {tokens}, which says too little about {preview.grid.tokens:,}"
    return (
        f"{what}. Run FPSAttention Benchmark once at this size{f' with backend {backends}' if backends else ''}, and "
        "they appear here and in the editor."
    )


def preview_text(preview: Preview, card: str | None) -> str:
    """Return the whole table."""
    lines = [f"FPSAttention Preview: {grid_line(preview)}", headline(preview)]
    lines += [f"Note: {note}" for note in preview.notes]
    lines += ["", *preview.schedule.format().splitlines(), ""]
    for phase in preview.phases:
        lines += [phase_line(phase), f"    {tiles_line(phase)}"]
    lines += ["", f"{'step':>9}  {'sigma':<6}  {'phase':>5}  {'attention':<10}  {'density':>7}  {'work so far':>11}"]
    lines[-1] += f"  {'expected':>12}" if len(preview.seconds) == 1 else ""
    lines += _step_lines(preview)
    return "\n".join([*lines, "", *seconds_lines(preview, card)]) + "\n"


def _step_lines(preview: Preview) -> list[str]:
    each = preview.seconds[0].steps if len(preview.seconds) == 1 else None
    groups: list[list[int]] = []
    for step in preview.steps:
        short = len(preview.steps) <= MAX_LINES
        if groups and not short and preview.steps[groups[-1][-1]].phase == step.phase:
            groups[-1].append(step.index)
        else:
            groups.append([step.index])
    lines = []
    for group in groups:
        first, last = preview.steps[group[0]], preview.steps[group[-1]]
        number = f"{first.index}" if first is last else f"{first.index}-{last.index}"
        granularity = preview.schedule.phases[first.phase].granularity
        attention = " ".join(filter(None, [first.attention, granularity]))
        density = "?" if first.density is None else f"{first.density:.1%}"
        line = f"{number:>9}  {first.sigma:<6.4f}  {first.phase + 1:>5}  {attention:<10}  {density:>7}"
        line += f"  {preview.cumulative[last.index]:>11.1%}"
        lines.append(line + (f"  {short_time(sum(each[i] for i in group)):>12}" if each else ""))
    return lines
