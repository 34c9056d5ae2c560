"""The adaptive rate: when it cuts, how far, and that it goes on where it was."""

from __future__ import annotations

import json
import math

import pytest
from fpsattention.training.config import OptimSection
from fpsattention.training.plateau import BETTER, Plateau


def plateau(**changes) -> Plateau:
    settings = {"steps": 9, "warmup": 0, "plateau_factor": 0.5, "plateau_patience": 2, "final": 0.1}
    return Plateau(OptimSection(**(settings | changes)))


def factors(one: Plateau, losses) -> list[float]:
    seen = []
    for loss in losses:
        one.measured(loss)
        seen.append(one.factor)
    return seen


def test_a_falling_loss_keeps_the_rate():
    assert factors(plateau(), [1.0, 0.9, 0.8, 0.7]) == [1.0] * 4


def test_cuts_after_patience_and_counts_again():
    assert factors(plateau(), [1.0, 1.1, 1.2, 1.3, 1.4]) == [1, 1, 0.5, 0.5, 0.25]


def test_a_better_loss_ends_the_count():
    assert factors(plateau(), [1.0, 1.1, 0.9, 1.0, 1.0]) == [1, 1, 1, 1, 0.5]


def test_better_means_by_more_than_noise():
    assert factors(plateau(), [1.0, 1 - BETTER / 2, 1 - BETTER / 2]) == [1, 1, 0.5]
    assert factors(plateau(), [1.0, 1 - BETTER * 2, 1 - BETTER * 4]) == [1, 1, 1]


def test_the_best_stays_the_best_after_a_cut():
    # 0.95 would be better than the 1.0 that led to the cut, but not than 0.9.
    assert factors(plateau(), [0.9, 1.0, 1.0, 0.95, 0.95]) == [1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(("final", "lowest"), [(0.1, 0.1), (0.3, 0.3), (1.0, 1.0)])
def test_never_below_the_final_share(final, lowest):
    assert factors(plateau(final=final, plateau_patience=1), [1.0] * 30)[-1] == lowest


def test_a_loss_that_is_not_finite_is_not_better():
    one = plateau()
    assert factors(one, [math.nan, math.inf, 1.0, math.nan, math.nan]) == [1, 0.5, 0.5, 0.5, 0.25]
    assert one.best == 1.0


@pytest.mark.parametrize("at", range(6))
def test_goes_on_from_its_state_as_json(at):
    losses = [1.0, 1.1, 0.9, 1.0, 1.0, 1.0]
    whole, first = plateau(), plateau()
    factors(first, losses[:at])
    second = plateau()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert factors(second, losses[at:]) == factors(whole, losses)[at:]
    assert second.state_dict() == whole.state_dict()


def test_a_cut_is_logged(caplog):
    with caplog.at_level("INFO"):
        factors(plateau(), [1.0, 1.0, 1.0])
    assert "2 validations without a better loss (best loss 1.00000): rate x 0.5" in caplog.text
