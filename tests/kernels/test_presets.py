"""What every preset comes to in few and many steps, on a clip of 832 x 480 pixels and 81 frames."""

from __future__ import annotations

from pathlib import Path

import pytest
from fpsattention.kernels.outlook import sampler_sigmas, step_outlooks, video_grid
from fpsattention.kernels.presets import PRESETS, preset
from fpsattention.kernels.schedule import Schedule

STEPS = (4, 8, 20, 50)
# Dense steps and attention work in percent of dense, for 4, 8, 20 and 50 steps; the README shows those of shift 5.
TABLE = {
    ("mild", 3): ((1, 56), (2, 56), (5, 56), (11, 54)),
    ("mild", 5): ((2, 71), (3, 63), (7, 62), (16, 60)),
    ("mild", 8): ((2, 71), (4, 71), (9, 68), (21, 66)),
    ("balanced", 3): ((0, 18), (0, 19), (0, 20), (0, 20)),
    ("balanced", 5): ((0, 19), (0, 20), (0, 19), (0, 19)),
    ("balanced", 8): ((0, 19), (0, 19), (0, 19), (0, 19)),
    ("fast", 3): ((0, 12), (0, 12), (0, 12), (0, 12)),
    ("fast", 5): ((0, 13), (0, 13), (0, 12), (0, 12)),
    ("fast", 8): ((0, 13), (0, 12), (0, 12), (0, 12)),
    ("dense", 3): ((4, 100), (8, 100), (20, 100), (50, 100)),
    ("dense", 5): ((4, 100), (8, 100), (20, 100), (50, 100)),
    ("dense", 8): ((4, 100), (8, 100), (20, 100), (50, 100)),
    ("few-step", 3): ((1, 56), (1, 48), (1, 44), (2, 43)),
    ("few-step", 5): ((1, 56), (1, 48), (1, 44), (3, 45)),
    ("few-step", 8): ((1, 56), (1, 48), (2, 47), (4, 46)),
}
GRID = video_grid(832, 480, 81)


def outlook(schedule: Schedule, steps: int, shift: float) -> tuple[int, float]:
    """Return dense steps and attention work."""
    found = step_outlooks(schedule, GRID, sampler_sigmas(steps, shift)[:-1])
    return sum(step.attention == "dense" for step in found), sum(step.density for step in found) / steps


def test_every_preset_is_in_the_table():
    assert {name for name, _ in TABLE} == set(PRESETS) and list(PRESETS)[-1] == "few-step"


@pytest.mark.parametrize("name, shift", TABLE)
def test_what_presets_come_to(name, shift):
    found = tuple(outlook(preset(name), steps, shift) for steps in STEPS)
    assert tuple((dense, round(100 * work)) for dense, work in found) == TABLE[name, shift]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_fewest_steps_are_sensible(name, steps):
    """One step runs the first phase; no preset is dearer than dense."""
    dense, work = outlook(preset(name), steps, 5.0)
    assert 0 < work <= 1.0 and dense <= steps
    assert steps > 1 or preset(name).phases[0].attention != "dense" or dense == 1


@pytest.mark.parametrize("steps", range(4, 9))
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_few_steps_get_one_dense_step(steps, shift):
    """The table's claim between its columns: one dense step, the others at mild's density."""
    assert outlook(preset("few-step"), steps, shift)[0] == 1
    assert preset("few-step").phases[-1] == preset("mild").phases[-1]


@pytest.mark.parametrize("name", ["mild", "few-step", "balanced", "fast"])
def test_the_readme_says_so(name):
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    cells = [f"{dense} + {steps - dense}, {work} %" for steps, (dense, work) in zip(STEPS, TABLE[name, 5])]
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| {name} | ") and " + " in line]
    assert row.strip("| ").split(" | ")[2:] == cells
