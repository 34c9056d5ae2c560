"""What the steps of a run took: sentences, and a picture of the seconds of every block in every step."""

from __future__ import annotations

import statistics

from PIL import ImageDraw

from .drawing import INK, SOFT, font, scale, shade
from .record import Run, Step

STRIP = 84
_BELOW = 34


def timings(run: Run) -> list[str]:
    """Return what the steps and blocks of ``run`` took, one sentence each; what is missing is said."""
    steps = [step for step in run.steps.values() if step.evaluations]
    if not steps:
        return []
    # The last step of a run that was stopped is not a whole one.
    whole = sorted(steps, key=lambda step: -step.sigma)[:-1] if run.stopped else steps
    return [*_compared(whole), *_in_blocks(steps), *_skipped(run)]


def _compared(steps: list[Step]) -> list[str]:
    """How long a sparse step took beside a dense one of the same run, or a model call where steps make several."""
    order = sorted((step for step in steps if not step.skipped), key=lambda step: -step.sigma)
    sparse = [step for step in order if step.sparse and not step.dense]
    dense = [step for step in order if step.dense and not step.sparse]
    if not order:
        return ["no step was computed in full, so none can be compared"]
    unit = "step" if all(step.evaluations == 1 for step in order) else "model call"
    if not sparse and not dense:
        return ["every step ran partly dense, so a sparse step cannot be compared with a dense one"]
    if not dense:
        return [f"this run has no dense step to compare with; a sparse {unit} took {_time(_median(sparse))}"]
    if not sparse:
        return [f"this run has no sparse step to compare with; a dense {unit} took {_time(_median(dense))}"]
    warm, note = order[0], ""
    # The first step also warms up: it counts only where there is no other of its kind.
    groups = [[step for step in group if step is not warm] or group for group in (sparse, dense)]
    for name, group in zip(("sparse", "dense"), groups):
        if group == [warm]:
            note = f"; the only {name} step is the first one, which also warms up"
    sparse_time, dense_time = (_median(group) for group in groups)
    ratio = sparse_time / max(dense_time, 1e-9)
    text = f"a sparse {unit} took {_time(sparse_time)}, a dense one {_time(dense_time)}: {ratio:.2f} of it"
    if all(step.blocks for group in groups for step in group):
        inside = [statistics.median(sum(step.blocks) / step.evaluations for step in group) for group in groups]
        text += f" (in the blocks alone {inside[0] / max(inside[1], 1e-9):.2f})"
    return [text + note]


def _in_blocks(steps: list[Step]) -> list[str]:
    timed = [step for step in steps if step.blocks]
    if not timed:
        return ["the blocks were not timed: none of them ran through the patch on a device that can be timed"]
    total, inside = sum(step.seconds for step in timed), sum(sum(step.blocks) for step in timed)
    share = min(inside / max(total, 1e-9), 1.0)
    text = f"the blocks (self-attention, cross-attention, feed-forward) took {share:.0%} of the time of the steps"
    return [text if len(timed) == len(steps) else f"{text}; they were timed in {len(timed)} of {len(steps)} steps"]


def _skipped(run: Run) -> list[str]:
    planned = len(run.sample_sigmas) - 1
    reached = {step.index for step in run.steps.values() if step.index is not None}
    if planned < 1 or not run.finished or run.stopped or len(reached) >= planned:
        return []
    # A sampler that goes its own way, as dpm_fast does, calls the model at other sigmas than the planned ones.
    if any(all(abs(sigma - other) > 1e-5 for other in run.sample_sigmas) for sigma in run.steps):
        return []
    return [f"{planned - len(reached)} of {planned} steps never called the model: another node skipped them"]


def _median(steps: list[Step]) -> float:
    return statistics.median(step.seconds / step.evaluations for step in steps)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def strip_height(run: Run) -> int:
    """Return the height that ``draw_strip`` needs."""
    return STRIP + _BELOW if any(step.blocks for step in run.steps.values()) else 0


def draw_strip(draw: ImageDraw.ImageDraw, steps: list[Step], left: float, right: float, top: float) -> None:
    """Draw one column per step and one row per block, dark where a block took long, and what dark means."""
    blocks = max((len(step.blocks) for step in steps), default=0)
    if not blocks:
        return
    times = sorted(seconds for step in steps for seconds in step.blocks)
    # A block that compiled or loaded something would leave all others white.
    long, longest = times[int(0.97 * (len(times) - 1))] or 1.0, times[-1]
    slot, row = (right - left) / len(steps), STRIP / blocks
    for position, step in enumerate(steps):
        x0, x1 = left + position * slot, left + (position + 1) * slot
        for block, seconds in enumerate(step.blocks):
            y0, y1 = top + block * row, top + (block + 1) * row
            draw.rectangle((round(x0), round(y0), round(x1) - 2, round(y1) - 1), fill=shade(seconds / long))
        if not step.blocks:
            draw.text(((x0 + x1) / 2, top + STRIP / 2), "-", font=font(13), fill=SOFT, anchor="mm")
    small = font(13)
    draw.rectangle((left, top, right - 2, top + STRIP - 1), outline=SOFT)
    draw.text((left - 8, top), "block 0", font=font(11), fill=SOFT, anchor="rt")
    draw.text((left - 8, top + STRIP), f"{blocks - 1}", font=font(11), fill=SOFT, anchor="rb")
    scale(draw, left, top + STRIP + 8)
    text = f"time of each block in each step, 0 to {_time(long)}"
    if longest > 1.1 * long:
        text += f" and more (the longest took {_time(longest)})"
    draw.text((left + 128, top + STRIP + 14), text, font=small, fill=INK, anchor="lm")
