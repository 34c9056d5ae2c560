"""Which candidate a head gets, from its errors and costs: the paper's rule, and the one that meets a budget.

Sparse-vDiT (arXiv 2506.03065, equations 2 and 3, algorithm 1): the loss of a candidate is error + lambda * cost, with
cost = 1 - sparsity as algorithm 1 needs it; full attention stays where every other candidate's loss exceeds epsilon.
With epsilon = lambda (full attention's own loss: error 0, cost 1) the rule minimizes the sum of errors for the total
cost that it comes to: that is the budget's rule, and lambda the price that a budget sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FULL = 0
# As published; epsilon is in units of the error, so it means little but for plain MSE.
PAPER_LAMBDA, PAPER_EPSILON = 0.5, 1.0
# Ours, for normalized errors: a head may lose a twentieth of its layer's mean power per head to run free of charge.
LAMBDA, EPSILON = 0.05, 0.05


@dataclass(frozen=True)
class Rule:
    """lambda and epsilon; with ``epsilon`` None full attention competes by its own loss, as a budget needs it."""

    lam: float = PAPER_LAMBDA
    epsilon: float | None = PAPER_EPSILON

    def __post_init__(self) -> None:
        for name, value in (("lambda", self.lam), ("epsilon", self.epsilon)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value:g}; it is a number from 0 up.")

    def choose(self, errors: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Return the chosen candidate, int64 ``(...)``, from ``errors (..., C)`` and ``costs (C,)``; candidate 0 is
        full attention. Of equal losses the first wins; an error that is not finite is never chosen."""
        losses = np.where(np.isfinite(errors), errors, np.inf) + self.lam * costs
        if self.epsilon is None:
            losses[..., FULL] = np.where(np.isfinite(losses[..., FULL]), losses[..., FULL], self.lam * costs[FULL])
            return losses.argmin(-1)
        others = losses[..., FULL + 1 :]
        if others.shape[-1] == 0:
            return np.full(losses.shape[:-1], FULL)
        best = others.argmin(-1)
        least = np.take_along_axis(others, best[..., None], -1)[..., 0]
        return np.where(least > self.epsilon, FULL, best + FULL + 1)


def meet_budget(
    errors: np.ndarray, costs: np.ndarray, budget: float, weights: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return choices ``(...)`` with mean cost at most ``budget`` and little total error, and the lambda of the rule.

    Every head starts at its cheapest useful candidate and climbs its convex hull of (cost, error); of all climbs those
    that save most error per cost come first, as one lambda for all heads would have it, until the budget is used up.
    What no longer fits is passed over for a smaller climb; so the total error is the least possible but for about one
    climb, which matters only where heads are few. lambda is what the last climb saved per cost, or what the first one
    would save where the budget buys none. ``weights (...)`` say how much of the run each head stands for. Raises
    ValueError for a budget below the cheapest choice.
    """
    shape = errors.shape[:-1]
    flat = np.where(np.isfinite(errors), errors, np.inf).reshape(-1, errors.shape[-1])
    hulls = [_hull(row, costs) for row in flat]
    place = np.zeros(len(flat), dtype=np.int64)
    weight = np.ones(len(flat)) if weights is None else weights.reshape(-1)
    total = float(weight.sum())
    spent, limit = float(sum(w * costs[hull[0]] for w, hull in zip(weight, hulls))), budget * total
    if spent > limit + 1e-9 * total:
        raise ValueError(
            f"a mean cost of {budget:.3g} cannot be met, the least is {spent / total:.3g}; give more, or candidates "
            "that cost less."
        )
    climbs = []
    for head, hull in enumerate(hulls):
        slope = np.inf
        for step, (a, b) in enumerate(pairwise(hull), 1):
            # Never above the climb before, so that rounding does not change the order of a straight stretch.
            slope = min(slope, (flat[head, a] - flat[head, b]) / (costs[b] - costs[a]))
            climbs.append((slope, head, step, weight[head] * (costs[b] - costs[a])))
    climbs.sort(key=lambda climb: (-climb[0], climb[1], climb[2]))
    price = climbs[0][0] if climbs else 0.0
    for slope, head, step, more in climbs:
        # A hull is convex: a head's climbs come in order, and after one that did not fit the head stays.
        if place[head] == step - 1 and spent + more <= limit + 1e-9 * total:
            place[head], spent, price = step, spent + more, slope
    chosen = np.array([hull[step] for hull, step in zip(hulls, place)], dtype=np.int64)
    return chosen.reshape(shape), float(price)


def _hull(errors: np.ndarray, costs: np.ndarray) -> list[int]:
    """Return the candidates on the lower convex hull of (cost, error), cheapest first, ending at the least error; those
    on a straight stretch of it too, because smaller climbs fit into more budgets."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], errors[i], i))
    hull: list[int] = []
    for i in order:
        if not np.isfinite(errors[i]) or (hull and errors[i] >= errors[hull[-1]]):
            continue
        if hull and costs[i] == costs[hull[-1]]:
            hull.pop()
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (errors[a] - errors[b]) * (costs[i] - costs[b]) >= (errors[b] - errors[i]) * (costs[b] - costs[a]):
                break
            hull.pop()
        hull.append(i)
    # Nothing is finite where a head's output is not: it stays dense.
    return hull or [FULL]
