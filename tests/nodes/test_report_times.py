"""What the report says about time: compared steps, blocks, what is missing, and what was skipped."""

from __future__ import annotations

import pytest
from fpsattention.kernels.presets import preset
from fpsattention.nodes.record import Run, Step
from fpsattention.nodes.report_image import report_image
from fpsattention.nodes.report_text import findings, headline, report_text
from fpsattention.nodes.report_times import strip_height, timings
from fpsattention.nodes.settings import Settings

SETTINGS = Settings(preset("mild"), "the test")


def run_of(*steps: Step, planned: int | None = None, **values) -> Run:
    run = Run(None, None, None, 1, finished=True, **values)
    run.steps = {step.sigma: step for step in steps}
    run.sample_sigmas = [step.sigma for step in steps] + [0.0] * ((planned or len(steps)) + 1 - len(steps))
    for index, step in enumerate(steps):
        step.index = index
    return run


def step(sigma: float, seconds: float, *, sparse: int = 0, dense: int = 0, blocks: list | None = None, evals: int = 1):
    return Step(sigma, 0, 0, "fp8", sparse=sparse, dense=dense, seconds=seconds, evaluations=evals, blocks=blocks or [])


def said(run: Run) -> str:
    return "\n".join(timings(run))


def test_a_sparse_step_is_compared_with_a_dense_one():
    run = run_of(
        step(1.0, 9.0, dense=3, blocks=[4.0, 4.0]),
        step(0.9, 2.0, dense=3, blocks=[0.9, 0.9]),
        step(0.8, 1.3, sparse=3, blocks=[0.5, 0.5]),
        step(0.7, 1.2, sparse=3, blocks=[0.4, 0.5]),
    )
    assert "a sparse step took 1.25 s, a dense one 2.00 s: 0.62 of it (in the blocks alone 0.53)" in said(run)
    assert "the blocks (self-attention, cross-attention, feed-forward) took 87% of the time of the steps" in said(run)


def test_two_evaluations_are_two_calls():
    run = run_of(step(1.0, 4.0, dense=6, evals=2), step(0.9, 2.0, dense=3), step(0.8, 1.0, sparse=6, evals=2))
    assert "a sparse model call took 500.0 ms, a dense one 2.00 s: 0.25 of it" in said(run)


def test_skipped_steps_are_not_compared():
    """A step that another node answered from its cache took no time, and says nothing of dense attention."""
    skipped = step(0.6, 0.001)
    skipped.skip("the reason")
    run = run_of(step(1.0, 9.0, dense=3), step(0.8, 2.0, dense=3), skipped, step(0.5, 1.0, sparse=3))
    assert "a sparse step took 1.00 s, a dense one 2.00 s: 0.50 of it" in said(run)
    alone = run_of(skipped)
    assert "no step was computed in full, so none can be compared" in said(alone)
    (line,) = [line for line in report_text(SETTINGS, [alone], {}).splitlines() if "0.6000" in line]
    assert "skipped" in line and "%" not in line
    # No bar: the lowest grid line is crossed by nothing, and nothing is hatched.
    dense = run_of(step(0.6, 0.001, dense=3))
    dark = [int((report_image(SETTINGS, [run], {})[0, 150:360] < 0.9).any(-1).sum()) for run in (alone, dense)]
    assert dark[0] < dark[1]


def test_a_lone_first_step_is_said_to_warm_up():
    run = run_of(step(1.0, 4.0, dense=3), step(0.8, 1.0, sparse=3))
    assert "the only dense step is the first one, which also warms up" in said(run)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_run_of_one_kind_says_so(kind):
    other = {"dense": "sparse", "sparse": "dense"}[kind]
    run = run_of(step(1.0, 2.0, **{kind: 3}), step(0.5, 1.0, **{kind: 3}))
    assert f"this run has no {other} step to compare with; a {kind} step took 1.50 s" in said(run)


def test_partly_dense_steps_are_not_compared():
    assert "cannot be compared" in said(run_of(step(1.0, 2.0, sparse=3, dense=1)))


def test_missing_block_times_are_said():
    assert "the blocks were not timed" in said(run_of(step(1.0, 2.0, dense=3)))
    run = run_of(step(1.0, 2.0, dense=3, blocks=[1.0]), step(0.5, 2.0, dense=3))
    assert "they were timed in 1 of 2 steps" in said(run)
    assert strip_height(run) > strip_height(run_of(step(1.0, 2.0, dense=3))) == 0


def test_skipped_steps_are_counted_unless_the_run_was_stopped():
    run = run_of(step(1.0, 2.0, dense=3), planned=4)
    assert "3 of 4 steps never called the model: another node skipped them" in said(run)
    run.stopped = "cancelled"
    assert "never called" not in said(run)
    assert headline(run, 1, {}).endswith("(stopped in step 0: cancelled)")
    run.steps = {}
    assert headline(run, 1, {}).endswith("(stopped before its first step: cancelled)") and timings(run) == []


def test_a_sampler_with_sigmas_of_its_own_skipped_nothing():
    run = run_of(step(1.0, 2.0, dense=3), step(0.77, 2.0, dense=3), planned=4)
    run.sample_sigmas = [1.0, 0.9, 0.8, 0.7, 0.0]
    assert "never called" not in said(run)
    run.sample_sigmas[2] = 0.77
    assert "2 of 4 steps never called the model" in said(run)


def test_a_run_without_a_step_says_that_nothing_was_recorded():
    run = run_of()
    assert "no model call was recorded" in "\n".join(findings(run)) and "nothing stayed dense" not in findings(run)


def test_the_picture_grows_by_the_strip(host):
    without = report_image(SETTINGS, [run_of(step(1.0, 2.0, dense=3))], {})
    timed = run_of(step(1.0, 2.0, dense=3, blocks=[0.5, 1.0, 0.0]), step(0.5, 2.0, sparse=3))
    image = report_image(SETTINGS, [timed], {})
    assert image.shape[1] > without.shape[1]
    colors = {tuple(round(c * 255) for c in pixel) for pixel in image[0, 380:520, ::4].reshape(-1, 3).tolist()}
    assert (8, 48, 107) in colors
