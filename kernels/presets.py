"""Schedules by name.

Every preset keeps all of time: at equal density windows over all frames lose far less than local ones
(docs/decisions.md). Windows are shares of the axis, so a preset means the same density class at every resolution. Ends
are sigmas, so how many steps a phase gets follows from the sampler's shift and steps: FPSAttention Preview shows it for
a run, tests/kernels/test_presets.py holds a table.
"""

from __future__ import annotations

from .schedule import Schedule, ScheduleError

_HEAD = "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n"

PRESETS: dict[str, str] = {
    # For weights that were not trained for sparsity: dense while the layout forms (a quarter of the steps at shift 3, a
    # third at 5, nearly half at 8), then about 40 % density: 54 to 71 % of the work.
    "mild": _HEAD
    + """\
  0.92    dense
  0.00    fp8         x1            all 60% 60%
""",
    # For jointly trained weights: about 20 % density (up to 27 % where few tiles round shares up), no step dense.
    "balanced": _HEAD
    + """\
  0.90    fp8         x2            all 40% 30%
  0.60    fp8         x1            all 50% 40%
  0.00    fp8         x2            all 40% 35%
""",
    # For jointly trained weights: about 12 % density, no step dense.
    "fast": _HEAD
    + """\
  0.90    fp8         x2            all 30% 25%
  0.60    fp8         x1            all 40% 30%
  0.00    fp8         x2            all 30% 30%
""",
    "dense": _HEAD
    + """\
  0.00    dense
""",
    # For step-distilled weights and LoRAs (4 to 8 steps), not trained for sparsity: only the first step is dense (sigma
    # 1; the second stands below 0.99 at shifts up to 8), then about 40 % density: 56 % of the work in 4 steps and 48 %
    # in 8. With mild up to half of so few steps would be dense.
    "few-step": _HEAD
    + """\
  0.99    dense
  0.00    fp8         x1            all 60% 60%
""",
}


def preset(name: str) -> Schedule:
    """Return the schedule called ``name``; raises ScheduleError naming all presets if there is none."""
    if name not in PRESETS:
        raise ScheduleError(f"'{name}' is no preset; choose one of {', '.join(PRESETS)}.")
    return Schedule.parse(PRESETS[name])
