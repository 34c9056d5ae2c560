"""Which layers of a Wan are quantized, by rule.

Quantized are the linear layers of the blocks: q, k, v, o of self- and cross-attention (with the image's k and v), and
both of the feed-forward: 97 % of the weights of 1.3B and 98 % of 14B. The rest stays in full precision: first and last
layer (patch embedding, head), time and text embeddings, the time projection that makes the modulation, norms, biases.
They are few, and what they get wrong reaches every token of every block. Blocks at either end may be kept as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BLOCK = re.compile(r"blocks\.(\d+)\.((?:self_attn|cross_attn)\.(?:q|k|v|o|k_img|v_img)|ffn\.[02])")
# Kept, but looked at: their inputs come out of SiLU and GELU, and the report shows what they are like.
OBSERVED = ("time_embedding.2", "time_projection.1", "text_embedding.2", "head.head")
KEEPS = ("self_attn", "cross_attn", "ffn", "ffn.0", "ffn.2")


def quantized_layers(names: Iterable[str], blocks: int, keep_blocks: int = 0, keep: Iterable[str] = ()) -> list[str]:
    """Return those of a Wan's layers (original names) that are quantized.

    ``keep_blocks`` blocks at either end stay as they are, and so do layers whose name in the block starts with one of
    ``keep``: 'cross_attn', 'ffn.2', 'self_attn.v'.
    """
    found = []
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match is None or not keep_blocks <= int(match[1]) < blocks - keep_blocks:
            continue
        if not any(match[2] == part or match[2].startswith(part + ".") for part in keep):
            found.append(name)
    return found


def kind_of(layer: str) -> str:
    """Return a layer's name within its block."""
    match = _BLOCK.fullmatch(layer)
    return match[2] if match else layer
