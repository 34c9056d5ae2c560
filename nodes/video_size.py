"""The size of a video as node inputs, and the sentence for a size that cannot be."""

from __future__ import annotations

from typing import Any

from ..kernels.grid import GridError, TokenGrid
from ..kernels.outlook import PIXELS_PER_TOKEN, video_grid
from .sentence import written

MAX_SIDE = 16384
MAX_FRAMES = 16384
MAX_STEPS = 1000
MIN_SHIFT, MAX_SHIFT = 0.01, 1000.0


def size_inputs(purpose: str) -> list[Any]:
    """Return the inputs width, height and frames; ``purpose`` ends their tooltips."""
    from ._api import io

    return [
        io.Int.Input(
            "width", default=832, min=16, max=MAX_SIDE, step=16, tooltip=f"Width of the video in pixels {purpose}."
        ),
        io.Int.Input(
            "height", default=480, min=16, max=MAX_SIDE, step=16, tooltip=f"Height of the video in pixels {purpose}."
        ),
        io.Int.Input(
            "frames",
            default=81,
            min=1,
            max=MAX_FRAMES,
            step=4,
            tooltip=f"Frames of the video {purpose}; four of them are one latent frame, so 4n + 1.",
        ),
    ]


def whole_problem(name: str, value: Any, most: int) -> str | None:
    """Return the sentence for a ``value`` that is no whole number from 1 to ``most``; None if it is one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # isfinite alone fails for an integer that no float can hold.
    if not number or (isinstance(value, float) and not value.is_integer()):
        return f"{name} is {written(value)}, it must be a whole number; write one from 1 to {most}."
    if not 1 <= value <= most:
        return f"{name} is {written(int(value))}, it must be from 1 to {most}."
    return None


def range_problem(name: str, value: Any, least: float, most: float, hint: str = "") -> str | None:
    """Return the sentence for a ``value`` that is no number from ``least`` to ``most``; None if it is one."""
    # A comparison is false for NaN.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        return f"{name} is {written(value)}, it must be from {least:g} to {most:g}{hint}."
    return None


def size_problem(width: Any = None, height: Any = None, frames: Any = None) -> str | None:
    """Return the sentence for a size that cannot be, None for one that can or is not known yet (None)."""
    for name, value, most in (("width", width, MAX_SIDE), ("height", height, MAX_SIDE), ("frames", frames, MAX_FRAMES)):
        if value is not None and (problem := whole_problem(name, value, most)):
            return problem
    if None in (width, height, frames):
        return None
    try:
        video_grid(int(width), int(height), int(frames))
    except GridError as error:
        return str(error)
    return None


def missing_problem(**values: Any) -> str | None:
    """Return the sentence for the first value that a link left out, None where every one is there."""
    name = next((name for name, value in values.items() if value is None), None)
    return None if name is None else f"{name} is missing: what is linked to it gave nothing; write a value."


def token_grid(width: Any, height: Any, frames: Any, pixels: int = PIXELS_PER_TOKEN) -> TokenGrid:
    """Return the token grid of the video; raises GridError with one sentence."""
    if problem := missing_problem(width=width, height=height, frames=frames):
        raise GridError(problem)
    if problem := size_problem(width, height, frames):
        raise GridError(problem)
    return video_grid(int(width), int(height), int(frames), pixels)


def video_words(width: int, height: int, frames: int) -> str:
    """Return the video's size in words."""
    return f"{int(width)} x {int(height)}, {int(frames)} frame{'s' if frames != 1 else ''}"


def sampling_problem(steps: Any = None, shift: Any = None) -> str | None:
    """Return the sentence for steps or a shift that cannot be, None for those that can or are not known yet."""
    if steps is not None and (problem := whole_problem("steps", steps, MAX_STEPS)):
        return problem
    if shift is None:
        return None
    return range_problem("shift", shift, MIN_SHIFT, MAX_SHIFT, "; Wan's usual ones are 3 to 8")
