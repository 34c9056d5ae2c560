"""The Wan transformer that is trained: diffusers' own class, filled from files of any naming or at random."""

from __future__ import annotations

import contextlib
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .names import HEAD_DIM, WanShape, planned_shape
from .torchvision_guard import hide_broken_torchvision

if TYPE_CHECKING:
    from .config import ModelSection
    from .weights import Weights

hide_broken_torchvision()
try:
    from diffusers import WanTransformer3DModel
except (ImportError, RuntimeError) as error:  # pragma: no cover - depends on the installation
    raise ImportError(
        f"the trainer needs diffusers 0.39 to 0.42 (pip install -r training/requirements.txt): {error}"
    ) from error


def build(shape: WanShape) -> WanTransformer3DModel:
    """Return an untrained float32 model of this shape."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=shape.heads,
        attention_head_dim=HEAD_DIM,
        in_channels=shape.in_channels,
        out_channels=shape.out_channels,
        text_dim=shape.text_dim,
        freq_dim=shape.freq_dim,
        ffn_dim=shape.ffn_dim,
        num_layers=shape.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        image_dim=shape.image_dim or None,
        added_kv_proj_dim=shape.dim if shape.image_dim else None,
        pos_embed_seq_len=shape.position_tokens or None,
    )
    if shape.image_dim:
        from .image_attention import condition_on_image

        condition_on_image(model, shape.image_tokens)
    return model


def random_model(shape: WanShape, seed: int) -> WanTransformer3DModel:
    """Return a model with random weights that depend on the shape and the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(shape)
        for name, parameter in model.named_parameters():
            if name.endswith("scale_shift_table"):
                nn.init.normal_(parameter, std=1 / math.sqrt(shape.dim))
            elif parameter.ndim >= 2:
                nn.init.xavier_uniform_(parameter.flatten(1))
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
        # A last layer of zeros: the first prediction is zero, whatever the rest says.
        nn.init.zeros_(model.proj_out.weight)
    return model


def load_model(path: str | Path) -> WanTransformer3DModel:
    """Return the model of a file or folder (ComfyUI's, original or diffusers' names) in float32.

    Weights are held in float32 whatever the file has: they are the optimizer's master weights. They are read tensor by
    tensor; of an MSFP file the packed layers quantize as it says (``quantized``). Raises ModelError with one sentence
    for what is not a trainable Wan.
    """
    from .weights import load_into, open_weights

    weights = open_weights(path)
    model = announced(weights)
    load_into(model, weights)
    return model


def announced(weights: Weights) -> WanTransformer3DModel:
    """Return the model of opened weights without their values, on 'meta'."""
    from .quantized import quantize_layers

    with torch.device("meta"):
        model = build(weights.shape)
    if weights.msfp is not None:
        quantize_layers(model, weights.msfp)
    return model.requires_grad_(True)


def build_rope(model: WanTransformer3DModel) -> nn.Module:
    """Return the model's rotary table with real values: it is no parameter, so a model built on meta lacks it."""
    return type(model.rope)(HEAD_DIM, tuple(model.config.patch_size), model.config.rope_max_seq_len)


def model_shape(model: WanTransformer3DModel) -> WanShape:
    """Return the shape of a model that is in memory."""
    config = model.config
    return WanShape(
        dim=config.num_attention_heads * config.attention_head_dim,
        ffn_dim=config.ffn_dim,
        layers=config.num_layers,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        image_dim=config.image_dim or 0,
        position_tokens=config.pos_embed_seq_len or 0,
    )


def original_state(model: WanTransformer3DModel, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the weights under their original names, in the order of the published files, on the CPU."""
    from .weights import gathered

    return dict(gathered(model, dtype))


def keep_full_precision(model: WanTransformer3DModel) -> None:
    """Make time embedding, q/k norms and the head compute in float32 under autocast; the other norms do already."""
    attentions = [attention for block in model.blocks for attention in (block.attn1, block.attn2)]
    norms = [getattr(a, name, None) for a in attentions for name in ("norm_q", "norm_k", "norm_added_k")]
    for module in (
        model.condition_embedder.time_embedder,
        model.condition_embedder.time_proj,
        model.proj_out,
        *(norm for norm in norms if norm is not None),
    ):
        if not getattr(module, "full_precision", False):
            module.__class__ = _outside_autocast(type(module))


def for_inference(model: WanTransformer3DModel, dtype: str, device: torch.device) -> WanTransformer3DModel:
    """Return the model ready to sample in ``dtype`` (fp32 or bf16) on ``device``, without gradients."""
    keep_full_precision(model)
    if dtype == "bf16":  # else autocast would cast the weights again in every step, which inference does not
        for block in model.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
    return model.requires_grad_(False).to(device).eval()


@functools.cache
def _outside_autocast(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class whose forward computes in float32: a class, as copies of a model shall run their own weights."""

    class FullPrecision(kind):
        full_precision = True

        def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.float(), *args, **kwargs)

    FullPrecision.__name__ = FullPrecision.__qualname__ = f"FullPrecision{kind.__name__}"
    return FullPrecision


def autocast(device: torch.device, dtype: str) -> contextlib.AbstractContextManager:
    """Return the context that a forward pass runs in: bfloat16 autocast over float32 weights, or nothing for fp32."""
    if dtype == "fp32":
        return contextlib.nullcontext()
    # A cached cast would outlive its use until the context ends: bf16 copies of all weights beside a sharded model's
    # one gathered block, 28 GB at 14B. No weight is used twice in a forward, so the cache saves nothing.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def starting_model(section: ModelSection, seed: int) -> WanTransformer3DModel:
    """Return the model that a configuration's ``[model]`` names: a file's weights, or random ones from the seed."""
    if section.init == "random":
        return random_model(planned_shape(section), seed)
    return load_model(section.path)
