"""Validation: the flow-matching loss on held-out latents at fixed noise levels with fixed noise."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .attention import attention_state, compute_device
from .distributed import World
from .flow import noisy, sample_generator, velocity_loss
from .model import WanTransformer3DModel, autocast
from .sparse import DENSE, SparseAttention, latent_grid
from .step import model_inputs


@dataclass(frozen=True)
class Validation:
    """A validation loss: the mean over latents and sigmas, and the mean per sigma; the mean density of its attention,
    None where it was decided in compiled blocks."""

    loss: float
    per_sigma: dict[float, float]
    latents: int
    seconds: float
    density: float | None = None


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
    world: World | None = None,
) -> Validation:
    """Return the loss of the model over all samples (``{'latent', 'text'}``, with a condition for I2V) and sigmas.

    The noise depends on (seed, sample, sigma's index) only, so two models or two schedules are compared on the same
    inputs. In a ``world`` of several processes all must call it: each measures its share of the samples, and all return
    the same result. Raises ValueError if there are no samples.
    """
    if len(samples) == 0:
        raise ValueError("validation has no samples; give the validation part of the data more clips or frames")
    start, world, device = time.monotonic(), world or World(), compute_device(model)
    state, training = attention_state(model), model.training
    # The last places sum densities and count samples: processes that share a sample (sequence parallelism) count it
    # more than once.
    sums = torch.zeros(len(sigmas) + 2, dtype=torch.float64, device=device)
    model.eval()
    try:
        for chunk, weight in _share(samples, batch, world):
            taken = [samples[i] for i in chunk]
            latent = torch.stack([sample["latent"].float() for sample in taken])
            texts = [sample["text"] for sample in taken]
            condition, image = (stacked(taken, key, device) for key in ("condition", "image"))
            sums[-1] += weight * len(chunk)
            for index, sigma in enumerate(sigmas):
                noise = torch.stack(
                    [torch.randn(latent.shape[1:], generator=sample_generator(seed, i, index)) for i in chunk]
                )
                level = torch.full((len(chunk),), float(sigma))
                x = noisy(latent, noise, level).to(device)
                inputs = model_inputs(x, level.to(device), texts, condition, image)
                with state.step(attention, float(sigma), latent.shape), autocast(device, dtype):
                    out = model(*inputs, return_dict=False)[0]
                losses = velocity_loss(out, latent.to(device), noise.to(device))
                sums[index] += weight * losses.double().sum()
                density = attention.density(latent_grid(latent.shape), float(sigma))
                density = state.online_density if density is None else density
                sums[-2] += weight * len(chunk) * (float("nan") if density is None else density)
    finally:
        model.train(training)
    world.sum_([sums])
    *means, density = (sums[:-1] / sums[-1]).tolist()
    density = None if math.isnan(density) else density / len(sigmas)
    per_sigma = {float(sigma): mean for sigma, mean in zip(sigmas, means, strict=True)}
    return Validation(sum(means) / len(means), per_sigma, len(samples), time.monotonic() - start, density)


def stacked(samples: Sequence[dict[str, Any]], key: str, device: torch.device) -> torch.Tensor | None:
    """Return the samples' tensors of that name, or None if they have none."""
    if samples[0].get(key) is None:
        return None
    return torch.stack([sample[key].float() for sample in samples]).to(device)


def _share(samples: Sequence[dict[str, Any]], batch: int, world: World) -> list[tuple[list[int], float]]:
    """Return this process's chunks of sample indices with weights.

    All processes get the same number of chunks, because sharded weights are gathered by all in every forward: those
    with fewer samples repeat one, with weight zero.
    """
    mine = range(world.data_rank, len(samples), world.data_size)
    chunks = [(chunk, 1.0) for chunk in _chunks(samples, mine, batch)]
    most = max(world.gather_objects(len(chunks)))
    filler = (chunks[-1][0] if chunks else [0], 0.0)
    return chunks + [filler] * (most - len(chunks))


def _chunks(samples: Sequence[dict[str, Any]], indices: Sequence[int], batch: int) -> list[list[int]]:
    """Return runs of indices whose latents and texts have one shape and can be stacked."""
    chunks: list[list[int]] = []
    previous = None
    for i in indices:
        sample = samples[i]
        shape = (tuple(sample["latent"].shape), tuple(sample["text"].shape))
        if shape != previous or len(chunks[-1]) == batch:
            chunks.append([])
        chunks[-1].append(i)
        previous = shape
    return chunks
