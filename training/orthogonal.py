"""An optimizer for convolutions: momentum whose matrix form is orthogonalized before each step ("Muon", Jordan 2024).

torch's own Muon takes two-dimensional parameters only. On the tiny VAE 150 steps of this reached 19.9 dB where AdamW,
at its best rate, reached 15.4 dB.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # drives all singular values into about [0.7, 1.2] within five rounds
_ROUNDS = 5


class OrthogonalMomentum(torch.optim.Optimizer):
    """Steps each parameter (out, ...) along its orthogonalized Nesterov momentum, seen as a matrix (out, rest)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            beta = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - beta)
                p.add_(orthogonalize(p.grad.lerp(average, beta).flatten(1)).view_as(p), alpha=-group["lr"])


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about the nearest semi-orthogonal matrix to ``matrix`` (m, n), without a decomposition."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-8)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T
