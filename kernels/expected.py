"""What the self-attention of a run will take on a card, step by step, from what was measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
) -> RunSeconds | None:
    """Return what the run takes, or None without a card or where one step has no estimate.

    ``backends`` says what runs each kind of sparse attention, None where that stays dense: such a step takes what a
    dense one takes. Without ``backends`` any measurement counts, as ``Calibration.milliseconds`` says.
    """
    if card is None or not steps:
        return None
    dense = calibration.milliseconds(card, tokens, heads, head_dim, "dense", None, 1.0)
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
                backend=backend, slots=slots, tile=tile,
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
