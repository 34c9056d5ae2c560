"""From a configuration to a model, optimizer and averages that are ready for the first step.

The order matters: adapters and FP8 layers change modules, recomputation and compilation wrap them, sharding turns
their parameters into shards, and only then may an optimizer see parameters.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from .attention import attention_state
from .config import ConfigError, RunConfig
from .distributed import World
from .fits import check_heads, check_quantized, check_table, check_teacher
from .loss_weight import DenoisingFactor
from .model import WanTransformer3DModel, announced, keep_full_precision, model_shape, starting_model
from .parallel.shard import is_sharded, local_parameters, shard_model
from .quantized import is_quantized, train_quantized
from .ramp import Ramp
from .step import Training

if TYPE_CHECKING:
    from .weights import Weights

_log = logging.getLogger(__name__)
GRAPHS = 64  # of a compiled block


def assemble(
    config: RunConfig,
    world: World,
    device: torch.device,
    model: WanTransformer3DModel | None = None,
    empty_text: torch.Tensor | None = None,
) -> Training:
    """Return a run at step 0; ``model`` (changed in place) replaces the one that the configuration names.

    Files are read last, tensor by tensor, each process its own part: no process ever holds what it does not train with.
    Raises ConfigError where the run cannot be spread over these processes, ModelError for an unusable file.
    """
    check_spread(config, world)
    weights = None
    if model is None and config.model.init == "file":
        model, weights = _announced(config.model.path)
    elif model is None:
        model = starting_model(config.model, config.seed)
    check_table(config.attention.table, model_shape(model))
    model.train()
    keep_full_precision(model)
    if is_quantized(model):
        check_quantized(config)
    teacher, teacher_weights = _teacher_model(config, model, weights)
    if config.lora is not None:
        from .lora import add_lora

        add_lora(model, config.lora, config.seed)
    elif config.talora is not None:
        from .talora import add_talora

        add_talora(model, config.talora, config.flow.resolved(), config.seed)
    else:
        train_quantized(model)
    if config.adapters is not None and config.dtype == "bf16":
        halve_frozen(model)
    if config.fp8_linears is not None:
        from .fp8_linears import use_fp8_linears

        converted = use_fp8_linears(model, config.fp8_linears, device)
        _log.info("%d linear layers run in FP8", len(converted))
    for one, stored in ((model, weights), (teacher, teacher_weights)):
        if one is not None:
            _spread(config, one, world, device)
            _place(config, one, stored, device)
    return _run(config, world, device, model, teacher, empty_text)


def _announced(path: str) -> tuple[WanTransformer3DModel, Weights]:
    """Return the model of a file without values, and the file."""
    from .weights import open_weights

    weights = open_weights(path)
    return announced(weights), weights


def _place(config: RunConfig, model: WanTransformer3DModel, weights: Weights | None, device: torch.device) -> None:
    """Give the model its values where it shall have them: on the device, or in CPU memory to be brought over."""
    home = torch.device("cpu") if config.parallel.offload else device
    if weights is not None:
        from .weights import load_into

        model.to_empty(device=home)
        load_into(model, weights)
        if any(parameter.requires_grad for parameter in model.parameters()):
            _init_adapters(config, model)
    elif not is_sharded(model):
        model.to(home)
    model.rope.to(device)


def _init_adapters(config: RunConfig, model: WanTransformer3DModel) -> None:
    if config.lora is not None:
        from .lora import init_lora

        init_lora(model, config.seed)
    elif config.talora is not None:
        from .talora import init_talora

        init_talora(model, config.flow.resolved(), config.seed)


def check_spread(config: RunConfig, world: World) -> None:
    """Refuse a run that does not divide over the processes; raises ConfigError."""
    samples = config.optim.samples
    if samples % world.data_size:
        raise ConfigError(
            f"a step has {samples} samples, which {world.data_size} processes cannot share equally; "
            f"set optim.global_batch to a multiple of {world.data_size}"
        )


def _run(
    config: RunConfig,
    world: World,
    device: torch.device,
    model: WanTransformer3DModel,
    teacher: WanTransformer3DModel | None,
    empty_text: torch.Tensor | None,
) -> Training:
    from .ema import Ema
    from .optimizer import make_optimizer
    from .plateau import Plateau

    ramp = config.ramp
    return Training(
        config=config,
        world=world,
        device=device,
        model=model,
        optimizer=make_optimizer(config.optim, model, 1.0 if config.talora is None else config.talora.router_lr),
        attention=config.attention.resolved(),
        ramp=Ramp(ramp.steps, ramp.stages, ramp.fp8_after),
        ema=Ema(model, config.ema.decay) if config.ema is not None else None,
        plateau=Plateau(config.optim) if config.optim.decay == "plateau" else None,
        teacher=_teacher(config, model, teacher),
        loss_weight=DenoisingFactor(config.flow.resolved()) if config.loss.weighting != "none" else None,
        empty_text=empty_text,
    )


def _teacher_model(
    config: RunConfig, model: WanTransformer3DModel, weights: Weights | None
) -> tuple[WanTransformer3DModel | None, Weights | None]:
    """Return the frozen teacher where one is kept beside the trained model, and the file that fills it."""
    if not config.loss.teacher or (config.adapters is not None and config.loss.teacher_path is None):
        return None, None
    if config.loss.teacher_path is not None:
        teacher, weights = _announced(config.loss.teacher_path)
    elif weights is not None:
        teacher, weights = _announced(config.model.path)
    else:
        from .teacher import frozen_copy

        teacher = frozen_copy(model)
    check_teacher(config.loss.teacher_path, model_shape(teacher), model_shape(model))
    teacher.eval().requires_grad_(False)
    if config.dtype == "bf16":
        halve_frozen(teacher)
    keep_full_precision(teacher)
    return teacher, weights


def _teacher(config: RunConfig, model: WanTransformer3DModel, teacher: WanTransformer3DModel | None):
    if not config.loss.teacher:
        return None
    from .teacher import Teacher

    if teacher is not None:
        return Teacher(teacher, config.dtype)
    if config.talora is not None:
        from .talora import talora_off as off
    else:
        from .lora import lora_off as off
    return Teacher(model, config.dtype, lambda: off(model))


def halve_frozen(model: WanTransformer3DModel) -> None:
    """Hold the frozen matrices of the blocks in bfloat16: autocast computes with that anyway."""
    for block in model.blocks:
        for parameter in block.parameters():
            if not parameter.requires_grad and parameter.ndim == 2:
                parameter.data = parameter.data.to(torch.bfloat16)


def _compile(model: WanTransformer3DModel) -> None:
    """Compile every block; all share their graphs: one per phase, size of samples, and training or validation."""
    limits = torch._dynamo.config
    if hasattr(limits, "recompile_limit"):  # torch 2.6 or newer; beyond its 8 graphs blocks would run uncompiled
        limits.recompile_limit = max(limits.recompile_limit, GRAPHS)
    for block in model.blocks:
        block.compile()


def _spread(config: RunConfig, model: WanTransformer3DModel, world: World, device: torch.device) -> None:
    """Wrap the model for recomputation, compilation, shared tokens and shards, as configured."""
    from .parallel.recompute import recompute_blocks

    state = attention_state(model)
    state.device = device
    if any(parameter.requires_grad for parameter in model.parameters()):
        recompute_blocks(model, config.activation_checkpointing)
    if config.compile:
        _compile(model)
    if world.sequence_size > 1:
        from .parallel.sequence import SequenceGroup, share_tokens

        check_heads(world.sequence_size, state.heads)
        state.group = SequenceGroup(world.sequence_group, world.sequence_rank, world.sequence_size)
        share_tokens(model, state.group)
    if world.mesh is not None:
        if not next(model.parameters()).is_meta and not config.parallel.offload:
            model.to(device)
        shard_model(model, world, offload=config.parallel.offload)
        held = world.gather_objects(local_parameters(model))
        whole = sum(parameter.numel() for parameter in model.parameters())
        _log.info("%s parameters over %d processes: %s", f"{whole:,}", world.size, ", ".join(f"{n:,}" for n in held))
