"""Whether a run fits a GPU, and if not, which settings would make it fit: every proposal is itself planned."""

from __future__ import annotations

from collections.abc import Iterator

from ..kernels.grid import TokenGrid
from .config import ConfigError, RunConfig
from .config_file import with_changes
from .memory import GIB, plan_memory
from .names import WanShape

# Frames of the shorter clips that are proposed when nothing else helps.
SHORTER = (61, 49, 33, 17)


def verdict(config: RunConfig, shape: WanShape, grid: TokenGrid, world: int, gigabytes: float) -> str:
    """Return 'fits ...' or 'does not fit ...' with what to set, for GPUs of so many GiB."""
    plan = plan_memory(config, shape, grid, world=world)
    if plan.total <= gigabytes * GIB:
        return f"fits {gigabytes:g} GB: {plan.total / GIB:.1f} GiB, {gigabytes - plan.total / GIB:.1f} GiB to spare"
    said = (
        f"does not fit {gigabytes:g} GB: {plan.total / GIB:.1f} GiB are needed at the {plan.moment}, the largest part "
        f"is {plan.largest} ({plan.gpu[plan.largest] / GIB:.1f} GiB); "
    )
    limit = gigabytes * GIB
    alone = []
    for words, changes in _proposals(config, shape, world):
        total = _total(config, changes, shape, grid, world)
        if total is not None and total <= limit:
            alone.append(f"{words} ({total / GIB:.1f} GiB)")
    if alone:
        return said + "set " + ", or ".join(alone[:3])
    together, taken = {}, []
    for words, changes in _proposals(config, shape, world):
        if set(changes) & set(together):
            continue
        before, after = (_total(config, c, shape, grid, world) for c in (together, {**together, **changes}))
        if after is None or before is None or after >= before:
            continue
        together, taken = {**together, **changes}, [*taken, words]
        if after <= limit:
            return said + f"set {' and '.join(taken)} ({after / GIB:.1f} GiB)"
    for frames in SHORTER:
        if frames < config.data.frames:
            shorter = TokenGrid((frames - 1) // 4 + 1, grid.h, grid.w)
            total = _total(config, together, shape, shorter, world)
            if total is not None and total <= limit:
                also = f" and {' and '.join(taken)}" if taken else ""
                return said + f"set data.frames = {frames}{also} ({total / GIB:.1f} GiB)"
    return said + "take more or larger GPUs, or smaller clips"


def _total(config: RunConfig, changes: dict, shape: WanShape, grid: TokenGrid, world: int) -> int | None:
    try:
        return plan_memory(with_changes(config, **changes), shape, grid, world=world).total
    except ConfigError:
        return None


def _proposals(config: RunConfig, shape: WanShape, world: int) -> Iterator[tuple[str, dict]]:
    """Yield settings that save memory, those that cost the least time and change the least first."""
    if config.activation_checkpointing == "none":
        yield 'activation_checkpointing = "attention"', {"activation_checkpointing": "attention"}
    if config.activation_checkpointing != "full":
        yield 'activation_checkpointing = "full"', {"activation_checkpointing": "full"}
    if config.optim.batch > 1:
        yield "optim.batch = 1", {"optim__batch": 1, "optim__global_batch": config.optim.samples}
    if config.parallel.shard is not None and config.parallel.shard < world:
        yield f"parallel.shard = {world}", {"parallel__shard": world}
    if config.optim.name == "adamw":
        yield 'optim.name = "adamw-8bit"', {"optim__name": "adamw-8bit"}
    for size in (2, 4, 8):
        if size > config.parallel.sequence and world % size == 0 and shape.heads % size == 0:
            yield f"parallel.sequence = {size}", {"parallel__sequence": size}
            break
    if not config.parallel.offload:
        yield "parallel.offload = true", {"parallel__offload": True}
    if config.adapters is None and config.fp8_linears is None and config.output.dtype != "fp8":
        yield "a [lora] section", {"lora": {}}
