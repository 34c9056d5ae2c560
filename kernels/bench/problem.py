"""One attention problem: random inputs, the plans for a density, and the right answer on a sample of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from ..attention import make_spec, reference
from ..attention.spec import Spec
from ..grid import TokenGrid
from ..plan import AttentionPlan, Plans
from ..schedule import Schedule
from .cells import Cell, WindowChoice, window_for

SIGMA = 0.5
# Query tiles and heads that are checked against the reference before anything is timed.
CHECKED_TILES = 6
CHECKED_HEADS = 2


class Problem:
    """The inputs of a cell on a device: ``q, k, v`` and ``grad`` ``(B, S, H, D)`` from N(0, 1), never zeros.

    K gets a mean per channel, as trained models have one: smoothing it is part of the work.
    """

    def __init__(self, cell: Cell, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.cell, self.device, self.dtype = cell, device, dtype
        self.grid = TokenGrid(*cell.grid)
        generator = torch.Generator(device).manual_seed(seed)
        shape = (cell.batch, self.grid.tokens, cell.heads, cell.dim)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype)

        self.q, self.k, self.v = (normal(*shape) for _ in range(3))
        self.k += normal(1, 1, cell.heads, cell.dim)
        self.grad = normal(*shape) if self.backward else None
        self._plans: dict[object, AttentionPlan] = {}
        self._answers: dict[tuple, Any] = {}

    @property
    def backward(self) -> bool:
        """Whether the gradient is part of the cell."""
        return self.cell.direction == "backward"

    @property
    def input_bytes(self) -> int:
        """Bytes of q, k and v."""
        return 3 * self.q.numel() * self.q.element_size()

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of the dense forward: two products, two operations each."""
        return 4.0 * self.cell.batch * self.cell.heads * float(self.grid.tokens) ** 2 * self.cell.dim

    def window(self, slots: int) -> WindowChoice:
        """Return the window of the cell's density on tiles of ``slots``."""
        return window_for(self.cell.grid, slots, self.cell.density)

    def plan(self, slots: int, attention: str = "fp8", granularity: str = "x1") -> AttentionPlan:
        """Return the plan of the cell's density on tiles of ``slots``, for 'fp8' or 'bf16'."""
        key = (slots, attention, granularity)
        if key not in self._plans:
            row = f"0.00 {attention} {granularity if attention == 'fp8' else '-'} {self.window(slots).words}"
            plans = Plans(Schedule.parse(row), self.grid, self.cell.heads, slots=slots)
            self._plans[key] = plans.at(SIGMA, device=self.device)
        return self._plans[key]

    def full(self) -> AttentionPlan:
        """Return the plan in which every token sees every token, without FP8: what dense attention computes."""
        if "full" not in self._plans:
            plans = Plans(Schedule.parse("0.00 bf16 - all all all"), self.grid, self.cell.heads)
            self._plans["full"] = plans.at(SIGMA, device=self.device)
        return self._plans["full"]

    def once(self, answer: Callable[..., Any], plan: AttentionPlan, form: str) -> Any:
        """Return ``answer(self, plan, form)``, computed for the first contestant that asks and kept for the others."""
        key = (answer, id(plan), form)
        if key not in self._answers:
            self._answers[key] = answer(self, plan, form)
        return self._answers[key]

    def leaves(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return q, k, v, which want gradients where the cell is a backward one."""
        return tuple(x.detach().requires_grad_(self.backward) for x in (self.q, self.k, self.v))


def sample(plan: AttentionPlan, heads: int, seed: int = 0) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Return what is checked of a plan: query tiles, heads, and the tokens of those tiles."""
    generator = torch.Generator().manual_seed(seed)
    tiles = plan.layout.index.shape[0]
    # The last tile is the one that may be shorter; it is always among them.
    chosen = torch.randperm(tiles, generator=generator)[: CHECKED_TILES - 1].tolist()
    chosen = torch.tensor(sorted({*chosen, tiles - 1}))
    picked = sorted(torch.randperm(heads, generator=generator)[:CHECKED_HEADS].tolist())
    rows = plan.layout.index[chosen.to(plan.layout.index.device)]
    return chosen, picked, rows[rows >= 0].long()


def expected(problem: Problem, plan: AttentionPlan, form: str) -> tuple[torch.Tensor, list[int], torch.Tensor]:
    """Return ``(out (B, n, h, D) float32, heads, tokens)`` of the plain reference on a sample of heads and tiles.

    ``form`` is 'none' (exact attention under the plan's lists) or 'e4m3' / 'int8' (with that rounding). All keys are
    used; only query tiles and heads are sampled, so this is right at any size.
    """
    tiles, heads, tokens = sample(plan, problem.cell.heads)
    spec = _spec(problem, plan, form, heads)
    count = torch.zeros_like(spec.count)
    where = tiles.to(count.device)
    count[:, where] = spec.count[:, where]
    spec = dataclasses.replace(spec, count=count)
    inputs = [x[:, :, heads].float() for x in (problem.q, problem.k, problem.v)]
    out = reference.forward(*inputs, spec)[0]
    return out[:, tokens], heads, tokens


def expected_gradients(problem: Problem, plan: AttentionPlan, form: str) -> tuple[tuple[torch.Tensor, ...], int]:
    """Return ``((dq, dk, dv) (1, S, 1, D), head)`` of the plain reference for one head of the first sample."""
    head = sample(plan, problem.cell.heads)[1][0]
    spec = _spec(problem, plan, form, [head])
    inputs = [x[:1, :, head : head + 1].float() for x in (problem.q, problem.k, problem.v)]
    grad = problem.grad[:1, :, head : head + 1].float()
    return reference.backward(grad, *inputs, *reference.forward(*inputs, spec), spec), head


def _spec(problem: Problem, plan: AttentionPlan, form: str, heads: list[int]) -> Spec:
    lists = plan.lists_for(problem.q, problem.k, problem.v)
    spec = make_spec(plan, lists, "reference")
    pattern = spec.pattern_of_head[:, heads]
    if form == "none":
        return dataclasses.replace(spec, pattern_of_head=pattern, format="none", granularity=None)
    return dataclasses.replace(spec, pattern_of_head=pattern, format=form)
