"""The router of a timestep-aware LoRA: which LoRA of the hub acts at a noise level, learned, one for all layers.

A small MLP on the timestep embedding gives a logit per LoRA; the largest wins. The choice is hard, its gradient that
of the softmax (straight-through, arXiv 1308.3432), as in TALoRA (MSFP, arXiv 2505.21591, section 3). The embedding is
the sinusoidal one that the model itself starts from, without its fast half: a route is then a few stretches of sigma
and not noise. Nothing of the model's weights goes in, so a route changes only as the router learns.

All LoRAs start as zeros, and one that is never chosen stays so: the router starts as an even split of the noise
levels that training draws, and learns where the borders belong.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.timestep_lora import TOLERANCE, RouteTable
from .flow import Flow, timestep

WAVES = 4
"""Full waves over the trajectory that the fastest number of the embedding makes."""
GRID = 4096
CLOSE = 1e-10
FIT = 2048
RIDGE = 1e-4


class Router(nn.Module):
    """Timesteps (B,), 1000 sigma, to logits (B, hub). Computed in float64: equal on any device, but for ties."""

    def __init__(self, hub: int, width: int, freq_dim: int = 256) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.first = nn.Linear(2 * len(self._frequencies()), width)
        self.second = nn.Linear(width, hub)

    @property
    def hub(self) -> int:
        """How many LoRAs it chooses from."""
        return self.second.out_features

    def forward(self, time: Tensor) -> Tensor:
        """Return the logits, float64."""
        with torch.autocast(time.device.type, enabled=False):
            hidden = self.hidden(time)
            return F.linear(hidden, self.second.weight.double(), self.second.bias.double())

    def hidden(self, time: Tensor) -> Tensor:
        """Return the hidden layer (B, width), float64."""
        angles = time.double()[:, None] * torch.tensor(self._frequencies(), dtype=torch.float64, device=time.device)
        features = torch.cat([angles.cos(), angles.sin()], 1)
        return F.silu(F.linear(features, self.first.weight.double(), self.first.bias.double()))

    @torch.no_grad()
    def at(self, sigma: Tensor) -> Tensor:
        """Return the LoRA's index (B,) at noise levels (B,)."""
        return self(timestep(sigma.double())).argmax(1)

    def _frequencies(self) -> list[float]:
        half = self.freq_dim // 2
        every = [10000.0 ** (-k / half) for k in range(half)]
        return [f for f in every if 1000 * f <= 2 * math.pi * WAVES]


def straight_through(logits: Tensor) -> Tensor:
    """Return the choice (B, hub), exactly 0 and 1, with the softmax's gradient."""
    shares = logits.softmax(1)
    chosen = F.one_hot(logits.argmax(1), logits.shape[1]).to(shares)
    return chosen + (shares - shares.detach())


@torch.no_grad()
def even_router(hub: int, width: int, freq_dim: int, flow: Flow, seed: int) -> Router:
    """Return a router that gives every LoRA the same share of what training draws, LoRA 0 the lowest noise levels.

    The first layer is random, from the seed. The second is solved for: with p the share of draws below sigma and c the
    middle of LoRA i's part, logits 2 k c p - k c^2 are largest where c is nearest to p, so all that the hidden layer
    must give is p (ridge regression).
    """
    generator = torch.Generator().manual_seed(seed)
    router = Router(hub, width, freq_dim)
    for tensor, bound in ((router.first.weight, 1.0), (router.first.bias, 1.0)):
        tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))
    router.first.weight.mul_(math.sqrt(3 / router.first.in_features) * 2)
    drawn, parts = torch.tensor(flow.quantiles(FIT), dtype=torch.float64), (torch.arange(FIT) + 0.5).double() / FIT
    # All of sigma too: samplers start at 1, which training hardly draws.
    even = torch.linspace(0, 1, FIT, dtype=torch.float64)
    share = torch.searchsorted(drawn, even).double() / FIT
    sigmas, place = torch.cat([drawn, even]), torch.cat([parts, share]) - 0.5
    hidden = router.hidden(timestep(sigmas))
    hidden = torch.cat([hidden, torch.ones(len(sigmas), 1, dtype=torch.float64)], 1)
    square = hidden.T @ hidden / len(sigmas) + RIDGE * torch.eye(width + 1, dtype=torch.float64)
    *slope, start = torch.linalg.solve(square, hidden.T @ place / len(sigmas))
    middle = (torch.arange(hub, dtype=torch.float64) + 0.5) / hub - 0.5
    sharp = 2.0 * hub**2  # in the middle of a part its neighbors are e^-2 as likely
    router.second.weight.copy_(2 * sharp * middle[:, None] * torch.stack(slope))
    router.second.bias.copy_(2 * sharp * middle * start - sharp * middle.square())
    return router


def fold(router: Router) -> RouteTable:
    """Return the table that says what the router says at every sigma: borders are bisected between grid points."""
    sigmas = torch.linspace(0, 1, GRID + 1, dtype=torch.float64)
    chosen = router.at(sigmas)
    # From high to low; a row's end is where the next lower one begins.
    rows: list[tuple[float, int]] = []
    for i in (chosen[1:] != chosen[:-1]).nonzero().flatten().flip(0).tolist():
        low, high = (float(sigmas[i]), int(chosen[i])), (float(sigmas[i + 1]), int(chosen[i + 1]))
        rows += _borders(router, low, high)
    # A table takes what is a tolerance below a row's end for that row.
    rows = [(end + TOLERANCE, index) for end, index in rows if 0 < end + TOLERANCE < 1]
    kept = [row for row, below in zip(rows, [*rows[1:], (0.0, -1)]) if row[0] > below[0]]
    return RouteTable((*kept, (0.0, int(chosen[0]))))


def _borders(router: Router, low: tuple[float, int], high: tuple[float, int]) -> list[tuple[float, int]]:
    """Return (least sigma, index) of the stretches above ``low``'s, from ``high``'s down."""
    if low[1] == high[1]:
        return []
    if high[0] - low[0] < CLOSE:
        return [high]
    middle = (low[0] + high[0]) / 2
    between = (middle, int(router.at(torch.tensor([middle], dtype=torch.float64))))
    return _borders(router, between, high) + _borders(router, low, between)
