"""Denoising-factor alignment (DFA): a sample's loss weighs as much as its error enters the sampler's next state.

MSFP (arXiv 2505.21591, section 3) weighs the error of a prediction at step t by the factor with which the prediction
enters x_{t-1}. With DDPM, x_{t-1} = (x_t - (1 - alpha_t) / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + noise, that is

    gamma_t = (1 - alpha_t) / (sqrt(alpha_t) sqrt(1 - abar_t))                                       (``ddpm_factor``)

With rectified flow and Euler steps, x_next = x + (sigma_next - sigma) v: the velocity enters with the step's size in
sigma. A sampler of n steps with shift s stands at sigma(u) = s u / (1 + (s - 1) u) for u = 1, 1 - 1/n, ...; its step
is |d sigma / d u| / n for large n, with u = sigma / (s - (s - 1) sigma) put in:

    d sigma / d u = s / (1 + (s - 1) u)^2 = (s - (s - 1) sigma)^2 / s                            (``denoising_factor``)

The 1/n and every other constant go when the weight is normalized to mean 1 over the noise levels that training draws
(the mean over ``QUANTILES`` quantiles of them). Shift 1 has equal steps, and no weighting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from .flow import Flow

QUANTILES = 4096


def denoising_factor(sigma: float, shift: float) -> float:
    """Return |d sigma / d u| of a sampler with this shift at sigma: the size of its step there, times their number."""
    return (shift - (shift - 1) * sigma) ** 2 / shift


def ddpm_factor(alpha: float, alpha_bar: float) -> float:
    """Return the factor with which DDPM's update subtracts the predicted noise: alpha_t, and their product until t."""
    return (1 - alpha) / (math.sqrt(alpha) * math.sqrt(1 - alpha_bar))


@dataclass(frozen=True)
class DenoisingFactor:
    """The weight of a sample's loss by its sigma, mean 1 over what ``flow`` draws, for a sampler with its shift."""

    flow: Flow

    @cached_property
    def _mean(self) -> float:
        sigmas = self.flow.quantiles(QUANTILES)
        return sum(denoising_factor(sigma, self.flow.shift) for sigma in sigmas) / len(sigmas)

    def __call__(self, sigma: float) -> float:
        """Return the weight at sigma."""
        return denoising_factor(sigma, self.flow.shift) / self._mean
