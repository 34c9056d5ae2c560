"""Encode and decode a whole clip through ``AutoencoderKLWan`` in one pass, without the frame-by-frame cache.

Wan's VAE is causal, so its chunked loop (one frame, then four by four) computes exactly what one pass over all frames
computes. The one pass is several times faster on short clips and small models and can be differentiated cheaply; it
holds all frames' activations at once, so long or large clips keep the chunked loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .torchvision_guard import hide_broken_torchvision

hide_broken_torchvision()  # before diffusers, which would import a torchvision that does not fit

from diffusers.models.autoencoders.autoencoder_kl_wan import (  # noqa: E402
    AutoencoderKLWan,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
    WanUpsample,
)

_EPS = 1e-12  # of diffusers' and ComfyUI's normalization, there a floor of the norm


def encode_whole(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Return the posterior's parameters (B, 2z, 1 + (T-1)/4, H/8, W/8) of ``video`` (B, 3, T, H, W), T = 4k+1."""
    encoder = vae.encoder
    # Channels last: the convolutions are twice as fast on a CPU, and the norms run over contiguous channels.
    x = encoder.conv_in(video.contiguous(memory_format=torch.channels_last_3d))
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else _residual(layer, x)
    x = _middle(encoder.mid_block, x)
    return vae.quant_conv(encoder.conv_out(F.silu(_norm(encoder.norm_out, x))))


def decode_whole(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Return the video (B, 3, 4(t-1)+1, 8h, 8w), not clamped, of ``latents`` (B, z, t, h, w)."""
    decoder = vae.decoder
    x = decoder.conv_in(vae.post_quant_conv(latents.contiguous(memory_format=torch.channels_last_3d)))
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        if block.upsamplers is not None:
            x = _up(block.upsamplers[0], x)
    return decoder.conv_out(F.silu(_norm(decoder.norm_out, x)))


def _residual(block: nn.Module, x: Tensor) -> Tensor:
    if not isinstance(block, WanResidualBlock):
        return block(x)
    y = block.conv1(F.silu(_norm(block.norm1, x)))
    y = block.conv2(F.silu(_norm(block.norm2, y)))
    return y + block.conv_shortcut(x)


def _middle(block: WanMidBlock, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, attention(x))
    return x


def _norm(layer: WanRMS_norm, x: Tensor) -> Tensor:
    """Return the layer's normalization over channels, as one fused call over the last dimension."""
    y = F.rms_norm(x.movedim(1, -1), (x.shape[1],), layer.gamma.flatten().to(x.dtype), eps=_EPS**2)
    return y.movedim(-1, 1)


def _down(layer: WanResample, x: Tensor) -> Tensor:
    x = _per_frame(layer, x)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        # The first frame is a chunk of its own and passes; each later chunk sees the frame before it.
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], 2)
    return x


def _up(layer: WanResample, x: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        # The first frame stays one frame, and the later ones are convolved as if it had been black.
        rest = layer.time_conv(x[:, :, 1:])
        b, _, t, h, w = rest.shape
        rest = rest.reshape(b, 2, -1, t, h, w).permute(0, 2, 3, 1, 4, 5).reshape(b, -1, 2 * t, h, w)
        x = torch.cat([x[:, :, :1], rest], 2)
    return _per_frame(layer, x)


def _per_frame(layer: WanResample, x: Tensor) -> Tensor:
    b, _, t = x.shape[:3]
    x = x.transpose(1, 2).flatten(0, 1)
    for step in layer.resample:
        # Nearest by a factor of two is a repetition; torch's 2D kernel needs no float round trip for it.
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if isinstance(step, WanUpsample) else step(x)
    return x.unflatten(0, (b, t)).transpose(1, 2)
