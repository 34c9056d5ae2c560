"""Give a trained Wan VAE unit-variance, uncorrelated latents by folding a linear map into its 1x1x1 convolutions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .vae_pass import AutoencoderKLWan, encode_whole


@torch.no_grad()
def fold_whitening(vae: AutoencoderKLWan, videos: Iterable[Tensor]) -> Tensor:
    """Change ``vae`` in place and return the standard deviations of its latents' principal components before, sorted.

    Afterwards the latents of ``videos`` (1, 3, T, H, W), less Wan's fixed mean and over Wan's fixed deviation, have
    mean 0 and the identity as covariance. The decoder's first convolution undoes the map, so reconstructions are
    unchanged up to rounding.
    """
    z = vae.config.z_dim
    latents = torch.cat([encode_whole(vae, video)[:, :z].double().transpose(0, 1).flatten(1) for video in videos], 1)
    mean = latents.mean(1)
    variance, axes = torch.linalg.eigh(torch.cov(latents))
    order = variance.argsort(descending=True)
    spread, axes = variance[order].clamp_min(1e-12).sqrt(), axes[:, order]
    axes = axes * axes.sum(0).sign()  # an eigenvector's sign is arbitrary; fix it, so that a rerun gives the same file
    target_mean = torch.tensor(vae.config.latents_mean, dtype=torch.float64)
    target_std = torch.tensor(vae.config.latents_std, dtype=torch.float64)

    forward = (target_std / spread)[:, None] * axes.T
    shift = target_mean - forward @ mean
    backward = axes * (spread / target_std)[None]

    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:z].double().flatten(1), quant.bias[:z].double()
    quant.weight[:z] = (forward @ weight).view_as(quant.weight[:z]).to(quant.weight)
    quant.bias[:z] = (forward @ bias + shift).to(quant.bias)
    weight, bias = post.weight.double().flatten(1), post.bias.double()
    post.weight.copy_((weight @ backward).view_as(post.weight))
    post.bias.copy_(bias - weight @ backward @ shift)
    return spread.float()
