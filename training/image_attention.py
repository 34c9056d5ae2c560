"""How an image-to-video model sees its image: cross-attention to image and text, and the form of the CLIP feature.

Diffusers finds the image tokens by counting 512 text tokens from the end; here their number is the model's own, so that
a text may have any length, as in ComfyUI.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from .names import IMAGE_TOKENS


class ImageTextAttention(WanAttnProcessor):
    """Attention of video tokens to ``image_tokens`` image tokens and, apart from that, to the text behind them."""

    def __init__(self, image_tokens: int) -> None:
        super().__init__()
        self.image_tokens = image_tokens

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        """Return cross-attention's output (B, S, dim)."""
        image, text = encoder_hidden_states.tensor_split([self.image_tokens], dim=1)
        q = _heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads)
        k, v = _heads(attn.norm_k(attn.to_k(text)), attn.heads), _heads(attn.to_v(text), attn.heads)
        k_image = _heads(attn.norm_added_k(attn.add_k_proj(image)), attn.heads)
        v_image = _heads(attn.add_v_proj(image), attn.heads)
        seen = _attend(q, k, v) + _attend(q, k_image, v_image)
        return attn.to_out[1](attn.to_out[0](seen.transpose(1, 2).flatten(2)))


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    # Norms run in float32 under autocast and leave q and k so, while v is bfloat16.
    return scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)


def condition_on_image(model: nn.Module, image_tokens: int) -> None:
    """Give an image-to-video model its cross-attention, and the checks of what its forward pass is given."""
    for block in model.blocks:
        block.attn2.set_processor(ImageTextAttention(image_tokens))
    model.register_forward_pre_hook(_check_image, with_kwargs=True)
    if image_tokens > IMAGE_TOKENS:
        model.condition_embedder.image_embedder.register_forward_pre_hook(_images_apart)


def _check_image(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise ValueError with one sentence if the CLIP feature is missing or of another form."""
    given = kwargs.get("encoder_hidden_states_image", args[3] if len(args) > 3 else None)
    tokens, width = model.blocks[0].attn2.processor.image_tokens, model.config.image_dim
    batch = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).shape[0]
    wanted = f"the CLIP feature of {tokens} x {width} with every sample"
    if given is None:
        raise ValueError(f"this model needs {wanted}, but the data has none; prepare it with an image encoder")
    if given.numel() != batch * tokens * width or given.shape[-1] != width:
        raise ValueError(f"this model needs {wanted}, but was given {tuple(given.shape)} for {batch} samples")


def _images_apart(module: nn.Module, args: tuple) -> tuple:
    """Return the feature of first and last frame (B, 514, D) as diffusers joins it itself: (2 B, 257, D)."""
    return (args[0].reshape(-1, IMAGE_TOKENS, args[0].shape[-1]), *args[1:])
