"""What linear layers of the trained model become: an existing layer has its class set, parameters and names stay."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenLinear(nn.Linear):
    """A linear layer whose weights may be narrower than what flows through it, as a frozen base's are."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (..., out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``(..., out)`` in the precision of autocast, or else of ``x``, whatever the weights have."""
    if torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def become(layer: nn.Linear, kind: type[FrozenLinear]) -> None:
    """Make the layer one of ``kind``, whose ``super().forward`` is what the layer did until now."""
    layer.__class__ = kind if type(layer) is nn.Linear else _over(kind, type(layer))


@functools.cache
def _over(kind: type[FrozenLinear], below: type[nn.Linear]) -> type[nn.Linear]:
    return type(f"{kind.__name__}Over{below.__name__}", (kind, below), {})
