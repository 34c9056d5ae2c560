"""The rows of the demo's table: which weights run with which attention, and what their validation losses say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...kernels.schedule import Schedule
from ..config import RunConfig
from ..loop import FitResult, fit
from ..model import WanTransformer3DModel, starting_model
from ..sparse import DENSE, SparseAttention
from ..validation import Validation, validate

# Below this excess the training-free model is as good as dense, and a share of nothing says nothing.
SMALLEST_GAP = 0.03


@dataclass(frozen=True)
class Row:
    """One line of the table: ``weights`` is 'base', 'dense' or 'joint' (which fine-tune)."""

    key: str
    title: str
    weights: str
    attention: SparseAttention
    validation: Validation
    density: float | None

    @property
    def loss(self) -> float:
        """Validation loss."""
        return self.validation.loss


@dataclass(frozen=True)
class Trained:
    """The three sets of weights, and the fine-tunes' logs."""

    models: dict[str, WanTransformer3DModel]
    dense: FitResult
    joint: FitResult


def fp8_alone(attention: SparseAttention) -> SparseAttention:
    """Return the same attention with every window opened: FP8 without sparsity."""
    phases = [
        p if p.attention == "dense" else replace(p, window=(None, None, None), selector=None)
        for p in attention.schedule.phases
    ]
    return replace(attention, schedule=Schedule(tuple(phases)))


def fine_tune(config: RunConfig, train: Sequence[dict[str, Any]], say: Callable[[str], None]) -> Trained:
    """Return the base and its two fine-tunes: dense and joint, equal in everything but their attention."""
    base = starting_model(config.model, config.seed)
    results = {}
    for name, attention in (("dense", config.attention.model_copy(update={"schedule": "dense"})), ("joint", None)):
        say(f"fine-tuning {config.optim.steps} steps, {'densely (the control)' if attention else 'jointly'}")
        output = config.output.model_copy(update={"dir": f"{config.output.dir}/{name}", "name": name})
        checkpoint = config.checkpoint.model_copy(update={"dir": f"{config.output.dir}/{name}/checkpoints"})
        run = config.model_copy(
            update={"attention": attention or config.attention, "output": output, "checkpoint": checkpoint}
        )
        results[name] = fit(run, train, progress=f"{name} fine-tune")
    models = {"base": base, "dense": results["dense"].model, "joint": results["joint"].model}
    return Trained(models, results["dense"], results["joint"])


def measure(
    config: RunConfig, trained: Trained, val: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Row]:
    """Return the rows in the table's order, by key."""
    sparse = config.attention.resolved()
    plan = (
        ("base", "base, dense", "base", DENSE),
        ("fp8", "base, FP8 alone", "base", fp8_alone(sparse)),
        ("A", "A  base, FP8 + sparse, no training", "base", sparse),
        ("D", "D  dense fine-tune, used dense", "dense", DENSE),
        ("B", "B  dense fine-tune, used FP8 + sparse", "dense", sparse),
        ("C", "C  joint fine-tune, FP8 + sparse", "joint", sparse),
    )
    sigmas, rows = config.validation.sigmas, {}
    for key, title, weights, attention in plan:
        result = validate(
            trained.models[weights],
            val,
            sigmas=sigmas,
            attention=attention,
            seed=config.validation.seed,
            batch=config.validation.batch,
        )
        rows[key] = Row(key, title, weights, attention, result, result.density)
        say(f"{title:<40} validation loss {result.loss:.4f}   ({result.seconds:.0f} s)")
    return rows


def recovered(rows: dict[str, Row]) -> float | None:
    """Return the strict share of the gap that joint training closes, (B - C) / (B - D); None if there is no gap."""
    a, b, c, d = (rows[key].loss for key in "ABCD")
    if a / rows["base"].loss - 1 < SMALLEST_GAP or b <= d:
        return None
    return (b - c) / (b - d)
