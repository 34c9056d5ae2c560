"""The two spellings of a Wan VAE's parameters: the original one, which ComfyUI detects, and diffusers'.

The map is one-to-one and moves no numbers, so it is a rule on names; it is written from diffusers' side because those
names can always be had from a model built from its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_INNER = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_OUTER = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
)
_BLOCK = 4  # a decoder block is three residual blocks and one upsampler, numbered through in the original


def original_name(name: str) -> str:
    """Return the original Wan spelling of a parameter ``name`` of diffusers' ``AutoencoderKLWan``."""
    name = re.sub(
        r"\.mid_block\.resnets\.(\d)\.(\w+)\.",
        lambda m: f".middle.{2 * int(m[1])}.{_INNER[m[2]]}.",
        name,
    )
    name = re.sub(
        r"\.up_blocks\.(\d)\.resnets\.(\d)\.(\w+)\.",
        lambda m: f".upsamples.{_BLOCK * int(m[1]) + int(m[2])}.{_INNER[m[3]]}.",
        name,
    )
    name = re.sub(
        r"\.up_blocks\.(\d)\.upsamplers\.0\.",
        lambda m: f".upsamples.{_BLOCK * int(m[1]) + _BLOCK - 1}.",
        name,
    )
    name = re.sub(
        r"\.down_blocks\.(\d+)\.(norm1|conv1|norm2|conv2|conv_shortcut)\.",
        lambda m: f".down_blocks.{m[1]}.{_INNER[m[2]]}.",
        name,
    )
    for pattern, replacement in _OUTER:
        name = re.sub(pattern, replacement, name)
    return name


def name_map(names: Iterable[str]) -> dict[str, str]:
    """Return {original name: diffusers name} for all of a model's parameter ``names`` in diffusers' spelling."""
    return {original_name(name): name for name in names}
