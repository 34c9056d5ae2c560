"""What other lambdas and epsilons would make of the errors that a search measured."""

from __future__ import annotations

import numpy as np

from .rule import Rule
from .search import HeadSearch

LAMBDAS = np.logspace(-4, 1, 26)
EPSILONS = np.logspace(-3, 1, 26)


def frontier(search: HeadSearch) -> dict[str, tuple[list[float], list[float]]]:
    """Return curves of (mean density, mean error) of the rules on the measured errors: lambda with epsilon = lambda
    (what budgets do), and epsilon at the request's lambda.

    The errors are those along the searched trajectory; a search at another lambda would pass on other outputs.
    """
    errors = search.errors
    known = np.isfinite(errors).any(-1)
    errors = errors[known]

    def trade(rules: list[Rule]) -> tuple[list[float], list[float]]:
        points = set()
        for rule in rules:
            chosen = rule.choose(errors, search.costs)
            error = float(np.take_along_axis(errors, chosen[..., None], -1).mean())
            points.add((float(search.densities[chosen].mean()), max(error, 1e-8)))
        xs, ys = zip(*sorted(points))
        return list(xs), list(ys)

    lam = search.request.rule.lam
    return {
        "lambda, epsilon = lambda": trade([Rule(float(price), None) for price in LAMBDAS]),
        f"epsilon, lambda = {lam:g}": trade([Rule(lam, float(epsilon)) for epsilon in EPSILONS]),
    }
