"""Flow matching as Wan is trained: noise levels, the path, the target, and noise that depends on the sample only.

x_t = (1 - sigma) x0 + sigma eps      target = eps - x0      sigma = s u / (1 + (s - 1) u)      timestep = 1000 sigma
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

PARTS = 16  # least number of parts that stratified noise levels are drawn from


def shifted(u: float, shift: float) -> float:
    """Return the sigma of a uniform trajectory position u in [0, 1] under Wan's shift."""
    return shift * u / (1 + (shift - 1) * u)


def timestep(sigma: torch.Tensor) -> torch.Tensor:
    """Return the model's timestep of sigma: a float, 1000 sigma, with no offset and no rounding."""
    return sigma * 1000.0


def sample_generator(seed: int, epoch: int, sample: int) -> torch.Generator:
    """Return a CPU generator that depends on these three numbers only, so never on ranks, batches or resume."""
    words = np.random.SeedSequence([seed, epoch, sample]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


@dataclass(frozen=True)
class Flow:
    """How training draws its noise levels."""

    shift: float = 5.0
    sampling: str = "logit-normal"
    mean: float = 0.0
    std: float = 1.0

    def draw_sigma(self, generator: torch.Generator, part: tuple[int, int] | None = None) -> float:
        """Return one sigma in (0, 1); with ``part`` = (i, n) one from the i-th of n equally likely parts."""
        if part is not None:
            place = (part[0] + torch.rand((), generator=generator, dtype=torch.float64)) / part[1]
            u = (
                place
                if self.sampling == "uniform"
                else torch.sigmoid(self.mean + self.std * torch.special.ndtri(place))
            )
        elif self.sampling == "uniform":
            u = torch.rand((), generator=generator, dtype=torch.float64)
        else:
            normal = torch.randn((), generator=generator, dtype=torch.float64)
            u = torch.sigmoid(self.mean + self.std * normal)
        return shifted(float(u.clamp(1e-4, 1.0)), self.shift)

    def quantiles(self, n: int) -> list[float]:
        """Return n sigmas at the middles of n equally likely parts of what training draws."""
        p = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        u = p if self.sampling == "uniform" else torch.sigmoid(self.mean + self.std * torch.special.ndtri(p))
        return [shifted(float(value), self.shift) for value in u]


@dataclass(frozen=True)
class Draw:
    """One training sample made noisy: everything random about it is already drawn."""

    latent: torch.Tensor
    text: torch.Tensor
    noise: torch.Tensor
    sigma: float
    condition: torch.Tensor | None = None
    image: torch.Tensor | None = None
    dropped: bool = False
    """Whether its text was replaced by that of no text."""


def sample_sigma(flow: Flow, seed: int, epoch: int, index: int, part: tuple[int, int] | None = None) -> float:
    """Return the sigma that ``draw`` gives this sample, without reading the sample."""
    return flow.draw_sigma(sample_generator(seed, epoch, index), part)


def parts_of_step(seed: int, step: int, samples: int) -> list[tuple[int, int]]:
    """Return which of equally likely parts of the noise levels each of a step's samples draws from, as (part, parts).

    There are as many parts as samples in a step, but no fewer than ``PARTS``: small steps share them out among
    several, so that one sample a step is stratified too.
    """
    parts = max(samples, PARTS)
    places = range(step * samples, (step + 1) * samples)
    dealt = {n: np.random.default_rng((seed, n, 0x7061727473)).permutation(parts) for n in {p // parts for p in places}}
    return [(int(dealt[place // parts][place % parts]), parts) for place in places]


def draw(
    sample: dict,
    flow: Flow,
    seed: int,
    epoch: int,
    index: int,
    text_dropout: float = 0.0,
    empty_text: torch.Tensor | None = None,
    part: tuple[int, int] | None = None,
) -> Draw:
    """Return the sample with its own sigma and noise, the same on every machine and at every world size.

    With probability ``text_dropout`` the text is replaced by ``empty_text`` (zeros if None). ``part`` restricts the
    noise level to one of the parts that ``parts_of_step`` deals out.
    """
    generator = sample_generator(seed, epoch, index)
    sigma = flow.draw_sigma(generator, part)
    dropped = float(torch.rand((), generator=generator, dtype=torch.float64)) < text_dropout
    latent, text = sample["latent"].float(), sample["text"]
    noise = torch.randn(latent.shape, generator=generator)
    if dropped:
        text = torch.zeros_like(text) if empty_text is None else empty_text
    return Draw(latent, text, noise, sigma, sample.get("condition"), sample.get("image"), dropped)


def noisy(latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return x_t for latents (B, C, T, H, W) and sigmas (B,)."""
    s = sigma.view(-1, 1, 1, 1, 1)
    return (1 - s) * latent + s * noise


def velocity_loss(prediction: torch.Tensor, latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the mean squared velocity error per sample (B,), in float32."""
    return (prediction.float() - (noise - latent).float()).square().flatten(1).mean(1)
