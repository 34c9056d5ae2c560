"""The trained file: original Wan names without prefix, so stock ComfyUI loads it, and our header with the schedule."""

from __future__ import annotations

from pathlib import Path

import torch

from ..kernels.checkpoint import Header, write_checkpoint
from ..kernels.grid import TokenGrid, choose_tiling
from .config import RunConfig
from .files import file_sha256
from .loop import FitResult
from .model import WanTransformer3DModel, original_state
from .sparse import DENSE, SparseAttention

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TRAINER = "fpsattention 0.1.0"


def export(
    model: WanTransformer3DModel,
    path: str | Path,
    *,
    attention: SparseAttention = DENSE,
    grid: TokenGrid | None = None,
    base_sha256: str = "",
    step: int = 0,
    dtype: str = "bf16",
    extra_metadata: dict[str, str] | None = None,
) -> Path:
    """Return the path of the one safetensors file just written, complete or not at all.

    A dense model gets no header: it is an ordinary Wan file. ``grid`` is the one trained on; its tile is recorded.
    Raises ``kernels.checkpoint.CheckpointError`` when it cannot be written.
    """
    header = None
    if not attention.schedule.is_dense:
        tile = attention.tile
        if grid is not None:
            tile = choose_tiling(grid, attention.slots, attention.tile).tile
        header = Header(
            schedule=attention.schedule,
            slots=attention.slots,
            tile=tile,
            smooth_k=attention.smooth_k,
            base_sha256=base_sha256,
            trainer=TRAINER,
            step=step,
        )
    write_checkpoint(path, original_state(model, DTYPES[dtype]), header, extra_metadata)
    return Path(path)


def export_run(config: RunConfig, result: FitResult, grid: TokenGrid) -> Path:
    """Return the path of a finished run's file, ``<output.dir>/<output.name>.safetensors``."""
    base = file_sha256(config.model.path) if config.model.path is not None else ""
    return export(
        result.model,
        Path(config.output.dir) / f"{config.output.name}.safetensors",
        attention=config.attention.resolved(),
        grid=grid,
        base_sha256=base,
        step=result.step,
        dtype=config.output.dtype,
    )
