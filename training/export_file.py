"""The trained file: original Wan names without prefix, so stock ComfyUI loads it, and our header with the schedule.

A run with adapters gives a LoRA file (``diffusion_model.*`` names), any other the whole model. With a sharded model all
processes take part, one tensor at a time, and rank 0 writes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from ..kernels.checkpoint import Header, write_checkpoint
from ..kernels.grid import TokenGrid, choose_tiling
from .config import ModelSection, RunConfig
from .distributed import World
from .export_msfp import DTYPES, write_hub, write_trained
from .model import WanTransformer3DModel, model_shape
from .names import ModelError
from .quantized import is_quantized
from .sparse import DENSE, SparseAttention
from .weights import gathered, open_weights
from .weights.write import write_model

TRAINER = "fpsattention 0.1.0"

_log = logging.getLogger(__name__)


def header_of(attention: SparseAttention, grid: TokenGrid | None, base_sha256: str, step: int) -> Header | None:
    """Return what the file's header says; a dense model gets none: it is an ordinary Wan file.

    ``grid`` is the one trained on; its tile is recorded.
    """
    if attention.schedule.is_dense:
        return None
    tile = attention.tile
    if grid is not None:
        tile = choose_tiling(grid, attention.slots, attention.tile).tile
    return Header(
        schedule=attention.schedule,
        slots=attention.slots,
        tile=tile,
        smooth_k=attention.smooth_k,
        base_sha256=base_sha256,
        trainer=TRAINER,
        step=step,
        heads=attention.heads,
    )


def export(
    model: WanTransformer3DModel,
    path: str | Path,
    *,
    attention: SparseAttention = DENSE,
    grid: TokenGrid | None = None,
    base_sha256: str = "",
    step: int = 0,
    dtype: str = "bf16",
    fp8_matmul: bool = False,
    extra_metadata: dict[str, str] | None = None,
    world: World | None = None,
) -> Path | None:
    """Return the path of the one safetensors file just written, complete or not at all; None where rank is not 0.

    ``dtype`` is 'bf16', 'fp32' or 'fp8' (ComfyUI's scaled form). Raises ``kernels.checkpoint.CheckpointError`` on
    rank 0 when it cannot be written.
    """
    tensors = gathered(model, DTYPES.get(dtype))
    if world is not None and not world.is_main:
        _take_part(tensors)
        return None
    header = header_of(attention, grid, base_sha256, step)
    try:
        write_model(
            path,
            model_shape(model),
            tensors,
            dtype=dtype,
            header=header,
            fp8_matmul=fp8_matmul,
            extra_metadata=extra_metadata,
        )
    finally:
        # After a failure the other ranks are still gathering: without this one they would wait for ever.
        _take_part(tensors)
    return Path(path)


def export_run(
    config: RunConfig, model: WanTransformer3DModel, step: int, grid: TokenGrid | None, world: World | None = None
) -> Path | None:
    """Return the path of a run's file, ``<output.dir>/<output.name>.safetensors``, on rank 0; None elsewhere.

    All ranks call it. With ``[lora]`` the file is the LoRA, with ``[talora]`` the hub with its table of routes; an MSFP
    model that was trained itself becomes an MSFP file again. Averages must be in the model already, if they are wanted.
    """
    main = world is None or world.is_main
    path = Path(config.output.dir) / f"{config.output.name}.safetensors"
    base = base_hash(config.model) if main else ""
    if world is not None:
        world.barrier()  # the hash of a large base takes minutes, which is longer than GPUs wait for each other
    attention = config.attention.resolved()
    if config.talora is not None:
        return _export_hub(config, model, path, header_of(attention, grid, base, step), main)
    if is_quantized(model):
        header, tensors = header_of(attention, grid, base, step), gathered(model)
        try:
            if main:
                write_trained(path, model.msfp, tensors, dtype=config.output.dtype, header=header, step=step)
        finally:
            _take_part(tensors)
        return path if main else None
    if config.lora is None:
        return export(
            model,
            path,
            attention=attention,
            grid=grid,
            base_sha256=base,
            step=step,
            dtype=config.output.dtype,
            fp8_matmul=config.fp8_linears is not None,
            world=world,
        )
    from .lora import lora_state

    state = lora_state(model, DTYPES[config.output.dtype])
    if not main:
        return None
    write_checkpoint(path, state, header_of(attention, grid, base, step))
    return path


def _export_hub(
    config: RunConfig, model: WanTransformer3DModel, path: Path, header: Header | None, main: bool
) -> Path | None:
    from .talora import talora_state, whole_router

    hubs, router = talora_state(model, DTYPES[config.output.dtype]), whole_router(model)
    if not main:
        return None
    write_hub(path, config, hubs, router, getattr(model, "msfp", None), header)
    return path


def base_hash(section: ModelSection) -> str:
    """Return the SHA-256 of the weights that a run starts from, '' for a random start or files that are gone."""
    if section.path is None:
        return ""
    try:
        return open_weights(section.path).sha256
    except (ModelError, OSError) as error:
        _log.warning("the base model's hash is left out of the header: %s", error)
        return ""


def convert(source: str | Path, path: str | Path, dtype: str = "bf16") -> Path:
    """Return the path of a ComfyUI file made of another file or folder of weights; a header is carried over.

    Raises ModelError for what is not a Wan, CheckpointError when the file cannot be written.
    """
    weights = open_weights(source)
    if weights.msfp is not None:
        raise ModelError(
            f"{source}: is an MSFP file, whose layers also quantize their inputs, which no other form says; load it as "
            "it is with Load MSFP Wan, or convert the Wan that it was made of"
        )
    header = Header.from_metadata(weights.metadata)
    tensors = ((original, weights.read(name)) for name, original in weights.original.items())
    write_model(path, weights.shape, tensors, dtype=dtype, header=header)
    return Path(path)


def _take_part(tensors: Iterable) -> None:
    for _ in tensors:
        pass
