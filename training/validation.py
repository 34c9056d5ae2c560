"""Validation: the flow-matching loss on held-out latents at fixed noise levels with fixed noise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .attention import attention_state
from .flow import noisy, sample_generator, timestep, velocity_loss
from .model import WanTransformer3DModel, autocast
from .sparse import DENSE, SparseAttention


@dataclass(frozen=True)
class Validation:
    """A validation loss: the mean over latents and sigmas, and the mean per sigma."""

    loss: float
    per_sigma: dict[float, float]
    latents: int
    seconds: float


@torch.no_grad()
def validate(
    model: WanTransformer3DModel,
    samples: Sequence[dict[str, Any]],
    *,
    sigmas: Sequence[float],
    attention: SparseAttention = DENSE,
    seed: int = 1234,
    batch: int = 4,
    dtype: str = "fp32",
) -> Validation:
    """Return the loss of the model over all samples (``{'latent', 'text'}``) and sigmas.

    The noise depends on (seed, sample, sigma's index) only, so two models or two schedules are compared on the same
    inputs. Raises ValueError if there are no samples.
    """
    if len(samples) == 0:
        raise ValueError("validation has no samples; give the validation part of the data more clips or frames")
    start, device = time.monotonic(), next(model.parameters()).device
    state, training = attention_state(model), model.training
    model.eval()
    sums = {float(sigma): 0.0 for sigma in sigmas}
    try:
        for chunk in _chunks(samples, batch):
            latent = torch.stack([samples[i]["latent"].float() for i in chunk])
            text = torch.stack([samples[i]["text"] for i in chunk]).to(device)
            for index, sigma in enumerate(sigmas):
                noise = torch.stack(
                    [torch.randn(latent.shape[1:], generator=sample_generator(seed, i, index)) for i in chunk]
                )
                level = torch.full((len(chunk),), float(sigma))
                x = noisy(latent, noise, level).to(device)
                with state.step(attention, float(sigma), latent.shape), autocast(device, dtype):
                    out = model(x, timestep(level).to(device), text, return_dict=False)[0]
                losses = velocity_loss(out, latent.to(device), noise.to(device))
                sums[float(sigma)] += float(losses.double().sum())
    finally:
        model.train(training)
    per_sigma = {sigma: total / len(samples) for sigma, total in sums.items()}
    return Validation(sum(per_sigma.values()) / len(per_sigma), per_sigma, len(samples), time.monotonic() - start)


def _chunks(samples: Sequence[dict[str, Any]], batch: int) -> list[list[int]]:
    """Return runs of indices whose latents and texts have one shape and can be stacked."""
    chunks: list[list[int]] = []
    previous = None
    for i in range(len(samples)):
        sample = samples[i]
        shape = (tuple(sample["latent"].shape), tuple(sample["text"].shape))
        if shape != previous or len(chunks[-1]) == batch:
            chunks.append([])
        chunks[-1].append(i)
        previous = shape
    return chunks
