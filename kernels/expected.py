"""What the self-attention of a run will take on a card, step by step, from what was measured there, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from .calibration import Calibration
from .outlook import StepOutlook
from .schedule import Schedule


@dataclass(frozen=True)
class RunSeconds:
    """Expected seconds of a run's self-attention with one model call per step, and of the dense run beside it.

    ``steps`` are the seconds of each step. ``entry`` is the measurement of the first step that runs sparse, else of the
    dense steps; ``ran`` names the backends that were measured, in the steps' order, else the dense one. ``scaled`` says
    that tokens or heads of one of the measurements differ; ``stays_dense`` that sparse steps stay dense on this card.
    """

    seconds: float
    dense_seconds: float | None
    steps: list[float]
    entry: dict
    ran: list[str]
    scaled: bool
    stays_dense: bool


def run_seconds(
    calibration: Calibration,
    card: str | None,
    schedule: Schedule,
    steps: Sequence[StepOutlook],
    tokens: int,
    heads: int,
    layers: int,
    head_dim: int = 128,
    *,
    slots: int | None = None,
    tile: Sequence[int] | None = None,
    backends: Mapping[str, str | None] | None = None,
    any_size: bool = False,
) -> RunSeconds | None:
    """Return what the run takes, or None without a card or where one step has no estimate.

    With ``any_size`` measurements of any number of tokens count: these are no seconds to show, but say whether it is
    only the size that was not measured.

    ``backends`` says what runs each kind of sparse attention, None where that stays dense: such a step takes what a
    dense one takes. Without ``backends`` any measurement counts, as ``Calibration.milliseconds`` says.
    """
    if card is None or not steps:
        return None
    dense = calibration.milliseconds(card, tokens, heads, head_dim, "dense", None, 1.0, any_size=any_size)
    found, sparse, stays_dense = [], [], False
    for step in steps:
        phase = schedule.phases[step.phase]
        backend = backends.get(phase.attention) if backends is not None else None
        if step.attention == "dense" or (backends is not None and backend is None):
            stays_dense = stays_dense or step.attention != "dense"
            estimate = dense
        elif step.density is None:
            return None
        else:
            # Without FP8 in the backend it is measured, and kept, as attention without FP8.
            plain = backend == "triton-bf16"
            attention, granularity = ("bf16", None) if plain else (phase.attention, phase.granularity)
            estimate = calibration.milliseconds(
                card, tokens, heads, head_dim, attention, granularity, step.density,
                backend=backend, slots=slots, tile=tile, any_size=any_size,
            )  # fmt: skip
            sparse.append(estimate)
        if estimate is None:
            return None
        found.append(estimate)
    each = [estimate.ms * layers / 1e3 for estimate in found]
    return RunSeconds(
        seconds=sum(each),
        dense_seconds=None if dense is None else dense.ms * layers * len(steps) / 1e3,
        steps=each,
        entry=(sparse or found)[0].entry,
        ran=list(dict.fromkeys(e.entry["backend"] for e in sparse)) or [str(found[0].entry["dense_backend"])],
        scaled=any(estimate.scaled for estimate in found),
        stays_dense=stays_dense,
    )


def all_stay_dense(steps: Sequence[StepOutlook], backends: Mapping[str, str | None] | None) -> bool:
    """Return whether there are sparse steps and this card runs all of them dense."""
    kinds = {step.attention for step in steps} - {"dense"}
    return backends is not None and bool(kinds) and all(backends.get(kind) is None for kind in kinds)


# A unit, its seconds, the unit below with its seconds, and how many there are before the next one is used.
_UNITS = (("min", 60, "s", 1, 60), ("h", 3600, "min", 60, 24), ("d", 86400, "h", 3600, math.inf))


def short_time(seconds: float) -> str:
    """Return ``seconds`` as a person would write them: '12 ms', '4.6 s', '1 min 40 s', '2 h 30 min', '105 d'.

    Exactly: below 0.9995 s milliseconds, below 59.5 s seconds, with tenths below 9.95 of them. Above, fewer than ten of
    a unit are followed by the rest in the unit below, where that is not 0, and more stand alone. Halves are rounded up.
    """
    if seconds < 0.9995:
        return f"{_tenths(seconds * 1e3)} ms"
    if seconds < 59.5:
        return f"{_tenths(seconds)} s"
    for unit, size, below, part, most in _UNITS:
        large, small = divmod(_round(seconds / part), size // part)
        if large < 10:
            return f"{large} {unit}" + (f" {small} {below}" if small else "")
        if _round(seconds / size) < most:
            break
    return f"{_round(seconds / size):,} {unit}"


def pace(ratio: float) -> tuple[str, str]:
    """Return what a time is to another that is ``ratio`` times as long: 'faster', 'slower' or 'same', and how many
    times, in digits: ``('faster', '1.5')`` reads '1.5 times as fast', ``('slower', '9.9')`` '9.9 times slower'.

    It is 'same' below 1.05 times either way; digits are as in ``short_time``, with commas between thousands.
    """
    kind, times = ("faster", ratio) if ratio >= 1 else ("slower", 1 / ratio)
    return ("same", "1") if times < 1.05 else (kind, _tenths(times))


def pace_words(ratio: float) -> str:
    """Return ``pace`` in words."""
    kind, times = pace(ratio)
    return {"same": "about as fast", "faster": f"{times} times as fast", "slower": f"{times} times slower"}[kind]


def _tenths(value: float) -> str:
    if value < 0.05:
        return "<0.1" if value else "0"
    # Decimal, because a format rounds halves to even and JavaScript up.
    return str(Decimal(value).quantize(Decimal("0.1"), ROUND_HALF_UP)) if value < 9.95 else f"{_round(value):,}"


def _round(value: float) -> int:
    return math.floor(value + 0.5)
