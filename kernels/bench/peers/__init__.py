"""Contestants: ours and every other attention that can be compared on the same problem, one module per origin.

A contestant says why it cannot take part (``reason``) or prepares itself (``prepare``): its inputs in its own best
layout, made before the clock starts. Ours is given token order and pays for every change of it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from ...plan import AttentionPlan
    from ..problem import Problem

# Relative L2 against the plain reference: 16-bit kernels round P and the output; INT8 ones round the inputs as well.
TOLERANCE_16 = 1e-2
TOLERANCE_8 = 8e-2


@dataclass
class Prepared:
    """A contestant that is ready: ``forward(*inputs)`` is what is timed (and its gradient for ``grad``).

    ``tokens`` brings an output into token order ``(B, S, H, D)``. It is checked against the reference under ``plan``
    with the rounding ``form``, or by ``check`` where it chooses its blocks itself; both give a relative L2.
    """

    forward: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]
    grad: torch.Tensor | None
    tokens: Callable[[torch.Tensor], torch.Tensor]
    density: float
    tolerance: float
    plan: AttentionPlan | None = None
    form: str = "none"
    check: Callable[[], float] | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def call(self) -> object:
        """Run what is timed once: forward, or forward and backward where the inputs want gradients."""
        if self.grad is None:
            with torch.no_grad():
                return self.forward(*self.inputs)
        return torch.autograd.grad(self.forward(*self.inputs), self.inputs, self.grad)


class Contestant(Protocol):
    """What every contestant offers; ``family`` is 'ours', 'dense' or 'sparse'."""

    name: str
    family: str

    def reason(self, problem: Problem) -> str | None:
        """Return why it cannot take part in ``problem``, None if it can."""
        ...

    def prepare(self, problem: Problem) -> Prepared:
        """Return it ready to run; may raise whatever its library raises."""
        ...


def missing(package: str) -> str | None:
    """Return 'not installed' with the package's name if it is not there."""
    try:
        found = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        found = False
    return None if found else f"not installed ({package})"


def contestants() -> list[Contestant]:
    """Return all contestants, ours first, then the dense ones."""
    from . import dense, fastvideo, flex, kitchen, ours, sage, sparge

    return [*ours.ALL, *dense.ALL, *flex.ALL, *fastvideo.ALL, *kitchen.ALL, *sage.ALL, *sparge.ALL]


def in_tiles(x: torch.Tensor, plan: AttentionPlan, slots: int) -> torch.Tensor:
    """Return ``x (B, S, H, D)`` in the plan's tile order ``(B, H, tiles*slots, D)``, dead rows zero."""
    index = padded_index(plan, slots).reshape(-1)
    rows = x.index_select(1, index.clamp_min(0)).masked_fill_((index < 0)[None, :, None, None], 0.0)
    return rows.transpose(1, 2).contiguous()


def from_tiles(x: torch.Tensor, plan: AttentionPlan, slots: int) -> torch.Tensor:
    """Return ``x (B, H, tiles*slots, D)`` in token order ``(B, S, H, D)``."""
    index = padded_index(plan, slots).reshape(-1)
    live = index >= 0
    out = x.new_empty(x.shape[0], plan.grid.tokens, x.shape[1], x.shape[3])
    out[:, index[live]] = x[:, :, live].transpose(1, 2)
    return out


def padded_index(plan: AttentionPlan, slots: int) -> torch.Tensor:
    """Return the plan's index with ``slots`` columns, -1 where dead."""
    index = plan.layout.index
    return torch.nn.functional.pad(index, (0, slots - index.shape[1]), value=-1)
