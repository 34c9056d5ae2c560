"""The schedule of a search: what it may say, and its first steps kept dense."""

from __future__ import annotations

from collections.abc import Sequence

from ..presets import PRESETS
from ..schedule import Phase, Schedule, ScheduleError


def read_searched(text: str) -> Schedule:
    """Return the schedule that ``text`` says, with ';' or line ends between phases; raises ScheduleError, one sentence,
    also where a search can do nothing with it."""
    if text in PRESETS:
        raise ScheduleError("a preset never says 'heads'; write for example '0 fp8 x1 heads'.")
    schedule = Schedule.parse(text if text[:1] in ("{", "[") else text.replace(";", "\n"))
    check_searched(schedule)
    return schedule


def check_searched(schedule: Schedule) -> None:
    """Raise ScheduleError if ``schedule`` leaves nothing to search, or has online selectors."""
    if not schedule.uses_heads:
        raise ScheduleError(
            "the schedule never says 'heads', so nothing would be searched; write for example '0 fp8 x1 heads'."
        )
    words = {phase.selector for phase in schedule.phases if phase.selector} - {"heads"}
    if words:
        raise ScheduleError(f"the schedule says '{min(words)}'; a search takes windows, dense and heads only.")


def dense_first(schedule: Schedule, sigmas: Sequence[float], steps: int) -> Schedule:
    """Return ``schedule`` with the first ``steps`` steps of a run over ``sigmas`` (the final zero left out) dense.

    Raises ScheduleError if that leaves no step to search.
    """
    if steps > 0:
        if steps >= len(sigmas):
            raise ScheduleError(
                f"keeping the first {steps} steps dense leaves none of {len(sigmas)} steps to search; give fewer."
            )
        until = round((sigmas[steps - 1] + sigmas[steps]) / 2, 6)
        schedule = Schedule((Phase(until, "dense"), *(phase for phase in schedule.phases if phase.until < until)))
    if not any(schedule.at(sigma)[1].uses_heads for sigma in sigmas):
        raise ScheduleError(
            f"none of the {len(sigmas)} steps is in a phase that says 'heads'; give more steps or another schedule."
        )
    return schedule
