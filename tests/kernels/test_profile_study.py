"""Planted sensitivities are found, flat ones are left alone, and the search is exact: toy trajectories, no model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.outlook import sampler_sigmas
from fpsattention.kernels.plan import plans_for
from fpsattention.kernels.profiling import choose, predict
from fpsattention.kernels.profiling.errors import ProfileError
from fpsattention.kernels.profiling.propose import propose
from fpsattention.kernels.profiling.rows import plan_rows
from fpsattention.kernels.profiling.study import (
    Goal,
    Outcome,
    Study,
    check_goal,
    measure,
    probing_level,
)
from fpsattention.kernels.profiling.table import RowTable
from fpsattention.kernels.profiling.trajectory import boundary, cut, mean_density, only, schedule_of
from fpsattention.kernels.profiling.windows import DENSE, ladder
from fpsattention.kernels.schedule import Schedule

GRID = TokenGrid(5, 24, 32)
STEPS, SHIFT = 18, 3.0
SIGMAS = sampler_sigmas(STEPS, SHIFT)
PLACES = {"early": (0, 6), "middle": (6, 12), "late": (12, 18)}


class Toy:
    """A run in a space of a few hundred numbers: every sparse step adds an error in a direction of its own.

    ``harm[i]`` is the size of that error in the final latent at full sparsity; ``coherent`` is the share of it that
    points the same way in all steps. The flow itself is a contraction, so errors also act on later steps.
    """

    def __init__(self, harm: np.ndarray, seed: int, coherent: float = 0.3):
        self.random = np.random.default_rng(seed)
        size = 400
        self.directions = self.random.normal(size=(len(harm), size)) / size**0.5
        self.common = self.random.normal(size=size) / size**0.5
        self.start = self.random.normal(size=size)
        self.harm, self.coherent = harm, coherent
        self.runs: list[str] = []
        self.dense = self.sample(None)
        self.peak = float(np.ptp(self.dense))

    def sample(self, schedule: Schedule | None) -> np.ndarray:
        x = self.start.copy()
        for i, sigma in enumerate(SIGMAS[:-1]):
            density = 1.0 if schedule is None else plans_for(schedule, GRID, 1).density(sigma)
            lost = (1 / density - 1) ** 0.5 / 2
            step = np.tanh(x) * 0.02
            error = self.coherent * self.common + (1 - self.coherent) * self.directions[i]
            x = x - step + self.harm[i] * lost * error
        return x

    def __call__(self, schedule: Schedule, what: str) -> Outcome:
        self.runs.append(what)
        difference = self.sample(schedule) - self.dense
        return Outcome(float(np.mean(difference**2)))


def table_of(levels, row_error: np.ndarray, seed: int) -> RowTable:
    """Row errors that fall with density as the toy's do, times ``row_error`` per step, with 10 % noise."""
    plan = plan_rows(GRID, levels, granularities=("x1",))
    table, random = RowTable(plan), np.random.default_rng(seed + 100)
    for step in range(STEPS):
        for layer in range(3):
            entry = np.ones((len(plan.names), 3))
            for i, level in enumerate(levels, 1):
                entry[i, 0] = row_error[step] ** 2 * (1 / level.density - 1) / 4 * math.exp(0.1 * random.normal())
            table.entries[step, layer] = entry
    return table


def profile(harm: np.ndarray, seed: int, goal: Goal, row_error: np.ndarray | None = None, count: int = 6) -> tuple:
    toy = Toy(harm, seed)
    levels = ladder(GRID, target=goal.density)
    rows = np.full(STEPS, 0.3) if row_error is None else row_error
    study = Study(
        cut(SIGMAS[:-1], count), levels, probing_level(levels, goal), toy.peak, table_of(levels, rows, seed), goal
    )
    measure(study, toy)
    propose(study, toy)
    return study, toy


def planted(place: str, seed: int) -> np.ndarray:
    harm = np.full(STEPS, 0.02) * np.exp(0.2 * np.random.default_rng(seed).normal(size=STEPS))
    first, last = PLACES[place]
    harm[first:last] *= 12
    return harm


def densities(study: Study) -> np.ndarray:
    """The proposed density of every step."""
    per_step = []
    for segment, level in zip(study.segments, study.proposal.levels):
        per_step += [study.levels[level].density] * segment.steps
    return np.array(per_step)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("place", PLACES)
def test_planted_sensitivity_is_found_and_gets_the_densest_phase(place, seed):
    study, _ = profile(planted(place, seed), seed, Goal("density", 0.3, 25, 3))
    first, last = PLACES[place]
    inside = np.zeros(STEPS, dtype=bool)
    inside[first:last] = True
    per_step = np.repeat([s / seg.steps for s, seg in zip(study.singles, study.segments)], 3)
    assert per_step[inside].min() > 3 * per_step[~inside].max()
    proposed = densities(study)
    assert proposed[inside].min() > 1.3 * proposed[~inside].max()
    assert study.proposal.work <= 0.3 + 1e-9
    assert study.proposal.measured >= study.uniform.measured + 0.3


@pytest.mark.parametrize("place", PLACES)
def test_the_final_latent_decides_also_where_row_errors_say_the_opposite(place):
    """Row errors are ten times larger exactly where nothing happens to the final latent."""
    first, last = PLACES[place]
    rows = np.full(STEPS, 0.5)
    rows[first:last] = 0.05
    study, _ = profile(planted(place, 0), 0, Goal("density", 0.3, 25, 3), rows)
    proposed = densities(study)
    assert proposed[first:last].min() > 1.3 * np.delete(proposed, range(first, last)).max()


def test_without_runs_nothing_but_the_uniform_schedule_is_proposed():
    goal = Goal("density", 0.3, 25, 3)
    levels = ladder(GRID, target=0.3)
    study = Study(
        cut(SIGMAS[:-1], 6), levels, probing_level(levels, goal), 1.0, table_of(levels, np.ones(STEPS), 0), goal
    )
    study.one_step = dict.fromkeys(range(STEPS), 0.1) | {5: 10.0}
    assert study.told_by == "one-step loss"
    propose(study, None)
    assert len(study.proposal.schedule.phases) == 1 and study.proposal.measured is None
    assert 0.2 < study.proposal.work <= 0.3 and np.argmax(study.harm()) == 1


def test_harm_says_what_it_was_measured_by():
    levels = ladder(GRID, target=0.3)
    rows = np.linspace(0.1, 0.5, STEPS)
    study = Study(cut(SIGMAS[:-1], 6), levels, 2, 1.0, table_of(levels, rows, 0), Goal("density", 0.3, 25, 3))
    study.one_step = {0: 0.1}
    assert study.told_by == "row error"
    assert study.harm() == pytest.approx([study.row_error(segment) ** 2 for segment in study.segments])
    study.singles = [1.0] * 6
    assert study.told_by == "final latent" and study.harm() == pytest.approx([1 / 3] * 6)


@pytest.mark.parametrize("seed", range(8))
def test_a_flat_run_gets_the_uniform_schedule(seed):
    """Errors of equal size up to 10 %, in random directions: nothing to find."""
    harm = 0.05 * np.exp(0.05 * np.random.default_rng(seed).normal(size=STEPS))
    study, _ = profile(harm, seed, Goal("density", 0.3, 25, 3))
    assert study.proposal.levels == study.uniform.levels and len(study.proposal.schedule.phases) == 1
    assert any("uniform one is proposed" in note for note in study.notes)


def test_no_harm_at_all_gets_the_uniform_schedule():
    study, _ = profile(np.zeros(STEPS), 0, Goal("density", 0.3, 25, 3))
    assert len(set(study.proposal.levels)) == 1 and study.proposal.measured == math.inf


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("place", PLACES)
def test_a_target_psnr_is_met_with_less_work_than_uniform(place, seed):
    harm = planted(place, seed)
    levels = ladder(GRID)
    toy = Toy(harm, seed)
    middle = len(levels) // 2
    reached = predict.psnr(toy(schedule_of(cut(SIGMAS[:-1], 1), [levels[middle]]), "").error, toy.peak)
    study, _ = profile(harm, seed, Goal("psnr", 0.3, reached, 3))
    assert study.proposal.measured >= reached - 0.2
    assert study.proposal.work < levels[middle].density


def test_an_unreachable_psnr_proposes_dense_and_says_so():
    study, _ = profile(planted("early", 0), 0, Goal("psnr", 0.3, 200.0, 3))
    assert study.proposal.schedule.is_dense and any("no sparse schedule" in note for note in study.notes)


@pytest.mark.parametrize("seed", range(3))
def test_the_prediction_of_unseen_schedules_is_near_what_they_come_to(seed):
    study, toy = profile(planted("middle", seed), seed, Goal("density", 0.3, 25, 3))
    random = np.random.default_rng(seed)
    errors = []
    for _ in range(20):
        levels = random.integers(0, len(study.levels), len(study.segments))
        got = toy(schedule_of(study.segments, [study.levels[i] for i in levels]), "").error
        errors.append(study.psnr(study.prediction.error(levels)) - study.psnr(got))
    assert np.median(np.abs(errors)) < 1.0 and max(map(abs, errors)) < 4.0


def test_runs_are_few_and_named():
    study, toy = profile(planted("late", 0), 0, Goal("density", 0.3, 25, 3))
    assert len(toy.runs) <= len(study.segments) + 5
    assert toy.runs[0] == "steps 0-2 sparse" and "all steps sparse" in toy.runs


def test_one_step_is_one_segment():
    goal = Goal("density", 0.3, 25, 3)
    levels = ladder(GRID, target=0.3)
    study = Study(cut([1.0], 6), levels, probing_level(levels, goal), 1.0, table_of(levels, np.ones(STEPS), 0), goal)
    measure(study, lambda schedule, what: Outcome(0.01, 0.1))
    propose(study, lambda schedule, what: Outcome(0.01, 0.1))
    assert len(study.proposal.schedule.phases) == 1 and study.one_step == {0: 0.1}


@pytest.mark.parametrize(
    ("goal", "measured", "words"),
    [
        (Goal("density", 0.001, 25, 3), True, "0.001 cannot be met.*choose that or more"),
        (Goal("density", 1.5, 25, 3), True, "between 0 and 1"),
        (Goal("density", float("nan"), 25, 3), True, "between 0 and 1"),
        (Goal("psnr", 0.3, 25, 3), False, "choose 'runs'"),
        (Goal("psnr", 0.3, float("nan"), 3), True, "no number of dB"),
        (Goal("density", 0.3, 25, 0), True, "at least one phase"),
    ],
)
def test_goals_that_cannot_be_are_one_sentence(goal, measured, words):
    with pytest.raises(ProfileError, match=words) as caught:
        check_goal(goal, ladder(GRID), measured)
    assert str(caught.value).count("\n") == 0


def test_a_run_that_breaks_is_one_sentence():
    levels = ladder(GRID)
    goal = Goal("density", 0.3, 25, 3)
    study = Study(cut(SIGMAS[:-1], 6), levels, 2, 1.0, table_of(levels, np.ones(STEPS), 0), goal)
    with pytest.raises(ProfileError, match="not finite"):
        measure(study, lambda schedule, what: Outcome(math.nan))


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 8, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_segments_are_what_their_schedule_runs(steps, shift):
    sigmas = sampler_sigmas(steps, shift)[:-1]
    segments = cut(sigmas, 6)
    assert [s for segment in segments for s in segment.sigmas] == sigmas and len(segments) == min(steps, 6)
    levels = ladder(GRID)
    for index, segment in enumerate(segments):
        schedule = Schedule.parse(only(segments, index, levels[0]).format())
        sparse = [i for i, sigma in enumerate(sigmas) if schedule.at(sigma)[1].attention != "dense"]
        assert sparse == list(range(segment.first, segment.last + 1))


def test_equal_sigmas_stay_together_and_rising_ones_are_refused():
    segments = cut([1.0, 0.9, 0.9, 0.9, 0.5], 5)
    assert [(s.first, s.last) for s in segments] == [(0, 0), (1, 3), (4, 4)]
    with pytest.raises(ProfileError, match="rises"):
        cut([0.5, 0.9], 2)
    with pytest.raises(ProfileError, match="no step"):
        cut([], 2)


def test_boundaries_are_short_and_lie_between():
    assert boundary(0.9, 0.5) == 0.7 and boundary(1.0, 0.99) == 0.995
    random = np.random.default_rng(0)
    for _ in range(300):
        above, below = np.float32(np.sort(random.random(2))[::-1])
        if above - below > 1e-5:
            until = boundary(float(above), float(below))
            assert above >= until - 1e-6 and below < until - 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_the_search_finds_what_trying_everything_finds(seed):
    random = np.random.default_rng(seed)
    densities = np.sort(random.random(4)).tolist()
    weights = (lambda w: w / w.sum())(random.random(5)).tolist()
    errors = np.sort(random.random((5, 4)))[:, ::-1].tolist()
    for phases in (1, 2, 3, 5):
        choices = choose.frontier(densities, weights, errors, phases)
        everything = []
        for levels in itertools.product(range(4), repeat=5):
            if 1 + sum(a != b for a, b in itertools.pairwise(levels)) <= phases:
                work = sum(w * densities[i] for w, i in zip(weights, levels))
                everything.append((work, sum(errors[s][i] for s, i in enumerate(levels))))
        for budget in (0.2, 0.5, 0.9):
            allowed = [error for work, error in everything if work <= budget]
            found = choose.least_error(choices, budget)
            assert (found is None) == (not allowed)
            assert found is None or found.error == pytest.approx(min(allowed))
            assert found is None or found.phases <= phases
            enough = [work for work, error in everything if error <= 5 * budget]
            found = choose.least_work(choices, 5 * budget)
            assert (found.work if found else None) == (pytest.approx(min(enough)) if enough else None)


def test_the_exponent_tells_independent_from_aligned_and_hidden_errors():
    singles = [1e-6, 2e-6, 3e-6]
    assert predict.fit_power(singles, sum(singles)) == pytest.approx(1, rel=1e-3)
    assert predict.fit_power(singles, sum(s**0.5 for s in singles) ** 2) == pytest.approx(0.5, rel=1e-3)
    assert predict.fit_power(singles, 2e-6) == predict.LARGEST_POWER
    assert predict.fit_power(singles, 1.0) == predict.LEAST_POWER
    made = predict.make_prediction(singles, 9e-6, [[4.0, 1.0, 0.0]] * 3, 1)
    assert made.error([1, 1, 1]) == pytest.approx(9e-6, rel=1e-6) and made.error([2, 2, 2]) == 0
    assert made.error([1, 2, 2]) == pytest.approx(1e-6) and made.error([0, 2, 2]) == pytest.approx(4e-6)


def test_mean_density_counts_steps():
    segments = cut(SIGMAS[:-1], 6)
    levels = ladder(GRID)
    schedule = schedule_of(segments, [levels[0]] * 3 + [DENSE] * 3)
    expected = np.mean([plans_for(schedule, GRID, 1).density(s) for s in SIGMAS[:-1]])
    assert mean_density(segments, [levels[0]] * 3 + [DENSE] * 3) == pytest.approx(expected)
