"""What a configuration asks of its model: told from the model's shape alone, before weights or data are touched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..kernels.checkpoint import HeaderError
from .config import ConfigError
from .names import HEAD_DIM, KINDS, ModelError, WanShape, read_shape

if TYPE_CHECKING:
    from ..kernels.head_table import HeadTable
    from .config import RunConfig
    from .layer_settings import Fp8LinearsSection

_NAMED = {
    "none": "text-to-video (16 channels)",
    "first": "image-to-video (36 channels: noise, mask and first frame)",
    "first-last": "first-last-frame (36 channels: noise, mask, first and last frame)",
}


def check_fits(config: RunConfig, shape: WanShape) -> None:
    """Refuse what a model of this shape cannot do; raises ModelError or ConfigError with one sentence."""
    _check_condition(config, shape)
    check_table(config.attention.table, shape)
    check_heads(config.parallel.sequence, shape.heads)
    if config.lora is not None:
        check_targets(config.lora.targets, block_linears(shape))
    if config.talora is not None:
        check_targets(config.talora.targets, block_linears(shape), "talora.targets")
    if config.fp8_linears is not None:
        check_blocks(config.fp8_linears, shape.layers)
    if config.loss.teacher_path is not None:
        try:
            teacher = read_shape(config.loss.teacher_path)
        except (HeaderError, ModelError) as error:
            raise ModelError(f"loss.teacher_path: {error}") from None
        check_teacher(config.loss.teacher_path, teacher, shape)


def check_quantized(config: RunConfig) -> None:
    """Refuse what an MSFP model cannot be trained with; raises ConfigError with one sentence."""
    from .weights import open_weights

    what = f"{config.model.path or 'the model'} is an MSFP model"
    if config.lora is not None:
        raise ConfigError(
            f"{what}, and an ordinary LoRA cannot be merged into its codes; use [talora] in place of [lora], with "
            "hub = 1 for a single one"
        )
    if config.fp8_linears is not None:
        raise ConfigError(f"{what}, whose linear layers are quantized already; remove [fp8_linears]")
    if config.loss.teacher and config.loss.teacher_path is None:
        raise ConfigError(
            f"{what}, which is no teacher of its own; set loss.teacher_path to the Wan in full precision that it was "
            "made of"
        )
    if config.loss.teacher_path is not None and open_weights(config.loss.teacher_path).msfp is not None:
        raise ConfigError(
            f"{what}, and loss.teacher_path {config.loss.teacher_path} is an MSFP file too; set it to the Wan in full "
            "precision that the model was made of"
        )
    if config.output.dtype == "fp8":
        raise ConfigError(
            f"{what}, and output.dtype is the precision of what is not packed; set it to 'bf16' or 'fp32', not 'fp8'"
        )


def block_linears(shape: WanShape) -> list[str]:
    """Return the original names of a block's linear layers, without the block."""
    start, end = "blocks.0.", ".weight"
    return [
        name[len(start) : -len(end)]
        for name, size in shape.tensors().items()
        if name.startswith(start) and name.endswith(end) and len(size) == 2
    ]


def check_targets(targets: Iterable[str], found: Iterable[str], key: str = "lora.targets") -> None:
    """Refuse a LoRA's target that is none of the linear layers of a block; raises ConfigError."""
    found = sorted(set(found))
    for target in targets:
        if target not in found:
            raise ConfigError(f"{key}: no block has a linear layer '{target}'; they have {', '.join(found)}")


def check_blocks(section: Fp8LinearsSection, count: int) -> None:
    """Refuse FP8 linear layers in none of so many blocks; raises ConfigError."""
    first, last = section.skip_first, section.skip_last
    if first + last >= count:
        raise ConfigError(
            f"fp8_linears.skip_first {first} and skip_last {last} leave none of the model's {count} blocks; "
            "lower them, or remove the section"
        )


def check_heads(sequence: int, heads: int) -> None:
    """Refuse processes that cannot share so many heads; raises ConfigError."""
    if heads % sequence:
        raise ConfigError(
            f"parallel.sequence is {sequence}, but the model has {heads} heads of {HEAD_DIM}; "
            f"choose a divisor of {heads}"
        )


def check_table(table: HeadTable | None, shape: WanShape) -> None:
    """Refuse a head table of another model; raises ConfigError."""
    problem = None if table is None else table.misfit(shape.layers, shape.heads)
    if problem is not None:
        raise ConfigError(f"attention.heads: {problem}")


def check_teacher(path: str | None, teacher: WanShape, shape: WanShape) -> None:
    """Refuse a teacher of another shape than the model's; raises ConfigError."""
    if teacher != shape:
        raise ConfigError(
            f"loss.teacher_path {path} holds a model of {_told(teacher)}, but the trained model has {_told(shape)}; "
            "name a teacher of the same shape"
        )


def _told(shape: WanShape) -> str:
    kind = KINDS[shape.kind]
    return f"dim {shape.dim}, ffn {shape.ffn_dim}, {shape.layers} layers, text {shape.text_dim} ({kind})"


def _check_condition(config: RunConfig, shape: WanShape) -> None:
    """Compare what the samples carry with what the model takes."""
    said, model = config.data.condition, config.model.path or "the random model"
    takes = {"t2v": "none", "i2v": "first", "flf": "first-last"}[shape.kind]
    # A plain image-to-video model also learns from two frames: its picture tokens carry no position.
    if said == takes or (said == "first-last" and takes == "first"):
        return
    fix = f"set data.condition to '{takes}'"
    if takes == "first":
        fix += " or 'first-last'"
    raise ModelError(
        f"{model}: a model for {_NAMED[takes]}, but data.condition is '{said}', which gives {_NAMED[said]}; {fix},"
        " or train another model"
    )
