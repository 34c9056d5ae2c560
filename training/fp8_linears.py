"""Linear layers of the blocks computed in FP8 by torchao, weights and optimizer in full precision as before.

Each of a layer's three matrix products (output, gradient of the input, gradient of the weight) quantizes its operands
on the fly. Gradients pass the quantization unchanged (straight-through).
"""

from __future__ import annotations

import dataclasses
import logging
import types
from typing import TYPE_CHECKING

import torch
from torch import nn

from .fits import check_blocks
from .model import WanTransformer3DModel
from .torchao_guard import torchao

if TYPE_CHECKING:
    from .layer_settings import Fp8LinearsSection

_log = logging.getLogger(__name__)

# Matrix units take FP8 operands in steps of this many numbers.
STEP = 16


def use_fp8_linears(
    model: WanTransformer3DModel, section: Fp8LinearsSection, device: torch.device | str | None = None
) -> list[str]:
    """Return the names of the block layers that now compute in FP8; parameters and their names do not change.

    Embeddings, norms, the head, layers whose sizes are no multiple of 16, and the first and last blocks that the
    section names stay as they are. ``device`` is where the model will run (None: where it is); where there are no FP8
    matrix units the same rounding is computed in the model's own precision, and the log says so. Call this before
    ``fully_shard``. Raises ConfigError with one sentence if torchao is missing or no block is left.
    """
    count, first, last = len(model.blocks), section.skip_first, section.skip_last
    check_blocks(section, count)
    float8 = torchao("float8", "fp8_linears")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    reason = _no_fp8_units(device)
    if reason is not None:
        _log.warning("fp8_linears: %s; FP8 is emulated: the same rounding, without the speed", reason)
    recipe = float8.Float8LinearConfig.from_recipe_name(section.recipe)
    # Padding: the weight's gradient sums over tokens, and 32,760 of them (480p) are no multiple of 16.
    recipe = dataclasses.replace(recipe, emulate=reason is not None, pad_inner_dim=True)
    converted: list[str] = []
    for i in range(first, count - last):
        names = [name for name, layer in model.blocks[i].named_modules() if _fits(layer)]
        float8.convert_to_float8_training(
            model.blocks[i], config=recipe, module_filter_fn=lambda layer, name, names=tuple(names): name in names
        )
        for name in names:
            layer = model.blocks[i].get_submodule(name)
            layer.forward = types.MethodType(_forward, layer)
        converted += [f"blocks.{i}.{name}" for name in names]
    return converted


def _fits(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Linear):
        return False
    return layer.in_features % STEP == 0 and layer.out_features % STEP == 0


def _forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    # Torchao looks at CUDA's autocast only, and autocast inside it would cast what is quantized already.
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return type(self).forward(self, x)


def _no_fp8_units(device: torch.device) -> str | None:
    """Return why this device cannot multiply FP8 matrices, None if it can."""
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda":
        return f"the model runs on '{device.type}'"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        fits = properties.gcnArchName.startswith(("gfx94", "gfx95", "gfx12"))
        return None if fits else f"{properties.name} ({properties.gcnArchName}) has no FP8 matrix units"
    fits = (properties.major, properties.minor) >= (8, 9)
    return None if fits else f"{properties.name} (sm_{properties.major}{properties.minor}) has no FP8 matrix units"
