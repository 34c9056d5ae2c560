"""The two sizes of the study: one that a CPU finishes in two hours, one for a card such as an H200."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...kernels.schedule import Schedule
from ..sparse import DENSE, SparseAttention

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class Size:
    """Everything that differs between the sizes; ``windows`` maps a name to a schedule's text."""

    name: str
    config: Path
    slots: int
    tile: tuple[int, int, int]
    windows: Mapping[str, str]
    core_steps: int
    short_steps: int
    """Steps of the searches: learning rates, losses, ramp."""
    curve_steps: int
    """Steps of the density curve and of the schedules' directions."""
    rates: tuple[float, ...]
    rate: float
    """Learning rate of everything but the search for it."""
    core_teacher: float
    """Share of the teacher's velocity in the core's second recipe; the first is flow matching alone."""
    validation: int
    """Held-out samples that a measurement takes, evenly over the clips."""
    videos: int
    sampling_steps: int

    def attention(self, window: str) -> SparseAttention:
        """Return the attention of a window's name."""
        if window == "dense":
            return DENSE
        return SparseAttention(Schedule.parse(self.windows[window]), self.slots, self.tile)


def _fp8(*phases: tuple[float, str]) -> str:
    """Return a schedule of FP8 phases ``(until, window)`` with a scale per tile."""
    return "\n".join(f"{until} fp8 x1 {window}" for until, window in phases)


# Thirds of the trajectory at shift 3, a little above u = 2/3 and 1/3: 18 and 24 sampling steps fall into equal thirds,
# and so do the noise levels of the schedules' own validation.
_EARLY, _MIDDLE = 0.858, 0.601

# 768 tokens, grid 8 x 8 x 12, tiles of 2 x 2 x 2: 4 x 4 x 6 = 96 tiles. Where no window has the density, two share the
# trajectory; the means stand for the 8 validation sigmas .98 .93 .85 .75 .6 .45 .3 .15.
_CPU_WINDOWS = {
    "fp8 only": _fp8((0, "all all all")),
    "time 50": _fp8((0, "all 6 8")),  # 48 of 96 tiles
    "time 25": _fp8((0, "all 4 6")),  # 24
    "time 15": _fp8((0.5, "all 4 4"), (0, "all 2 6")),  # 16 and 12: 15.1 %
    "time 10": _fp8((0.7, "all 2 6"), (0, "all 2 4")),  # 12 and 8: 10.4 %
    "time 5": _fp8((0.9, "all 2 4"), (0, "all 2 2")),  # 8 and 4: 5.2 %
    "cube 50": _fp8((0, "6 6 10")),  # 45: 46.9 %
    "cube 25": _fp8((0, "4 6 8")),  # 24
    "cube 15": _fp8((0.5, "4 4 8"), (0, "4 4 6")),
    "cube 10": _fp8((0.7, "4 4 6"), (0, "4 4 4")),
    "cube 5": _fp8((0.9, "4 4 4"), (0, "2 4 4")),
    "time 25 tall": _fp8((0, "all 6 4")),
    "time 25 flat": _fp8((0, "all 2 12")),
    "sparse-dense-medium": _fp8((_EARLY, "all 2 4"), (_MIDDLE, "all 6 8"), (0, "all 4 4")),  # 8, 48, 16: mean 24
    "dense-medium-sparse": _fp8((_EARLY, "all 6 8"), (_MIDDLE, "all 4 4"), (0, "all 2 4")),
    "sparse-dense-medium tall": _fp8((_EARLY, "all 4 2"), (_MIDDLE, "all 8 6"), (0, "all 4 4")),
    "dense-medium-sparse tall": _fp8((_EARLY, "all 8 6"), (_MIDDLE, "all 4 4"), (0, "all 4 2")),
}

CPU = Size(
    name="cpu",
    config=CONFIGS / "study-base.toml",
    slots=8,
    tile=(2, 2, 2),
    windows=_CPU_WINDOWS,
    core_steps=300,
    short_steps=150,
    curve_steps=80,
    rates=(3e-4, 1e-3, 3e-3),
    rate=1e-3,
    core_teacher=0.5,
    validation=16,
    videos=32,
    sampling_steps=18,
)

# 2,048 tokens, grid 8 x 16 x 16, tiles of 2 x 4 x 4: 4 x 4 x 4 = 64 tiles.
_H200_WINDOWS = {
    "fp8 only": _fp8((0, "all all all")),
    "time 50": _fp8((0, "all 8 16")),  # 32 of 64 tiles
    "time 25": _fp8((0, "all 8 8")),  # 16
    "time 15": _fp8((0.8, "all 4 12"), (0, "all 4 8")),  # 12 and 8: 14.8 %
    "time 10": _fp8((0.7, "all 4 8"), (0, "all 4 4")),  # 8 and 4: 9.4 %
    "time 5": _fp8((0, "all 4 4")),  # 4: 6.3 %, the least that keeps all of time
    "cube 50": _fp8((0, "6 12 16")),  # 36: 56 %
    "cube 25": _fp8((0, "4 8 16")),
    "cube 15": _fp8((0.8, "4 8 12"), (0, "4 8 8")),
    "cube 10": _fp8((0.7, "4 8 8"), (0, "4 4 8")),
    "cube 5": _fp8((0, "4 4 8")),
    "time 25 tall": _fp8((0, "all 16 4")),
    "time 25 flat": _fp8((0, "all 4 16")),
    "sparse-dense-medium": _fp8((_EARLY, "all 4 4"), (_MIDDLE, "all 8 16"), (0, "all 4 12")),  # 4, 32, 12: mean 16
    "dense-medium-sparse": _fp8((_EARLY, "all 8 16"), (_MIDDLE, "all 4 12"), (0, "all 4 4")),
    "sparse-dense-medium tall": _fp8((_EARLY, "all 4 4"), (_MIDDLE, "all 16 8"), (0, "all 12 4")),
    "dense-medium-sparse tall": _fp8((_EARLY, "all 16 8"), (_MIDDLE, "all 12 4"), (0, "all 4 4")),
}

H200 = Size(
    name="h200",
    config=CONFIGS / "study-base-h200.toml",
    slots=32,
    tile=(2, 4, 4),
    windows=_H200_WINDOWS,
    core_steps=5000,
    short_steps=1500,
    curve_steps=1500,
    rates=(3e-4, 1e-3),
    rate=3e-4,
    core_teacher=0.5,
    validation=64,
    videos=64,
    sampling_steps=24,
)

SIZES = {size.name: size for size in (CPU, H200)}
