"""What the report says about time: compared steps, blocks, what is missing, and what was skipped."""

from __future__ import annotations

import pytest
from fpsattention.nodes.record import Run, Step
from fpsattention.nodes.report_image import report_image
from fpsattention.nodes.report_text import headline
from fpsattention.nodes.report_times import strip_height, timings
from fpsattention.nodes.settings import Settings


def run_of(*steps: Step, planned: int | None = None, **values) -> Run:
    run = Run(None, None, None, 1, finished=True, **values)
    run.steps = {step.sigma: step for step in steps}
    run.sample_sigmas = [1.0] * ((planned or len(steps)) + 1)
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
    assert "a sparse step took 0.62 of a dense one: 1.25 s of 2.00 s (in the blocks alone 0.53)" in said(run)
    assert "the blocks (self-attention, cross-attention, feed-forward) took 87% of the time of the steps" in said(run)


def test_two_evaluations_are_two_calls():
    run = run_of(step(1.0, 4.0, dense=6, evals=2), step(0.9, 2.0, dense=3), step(0.8, 1.0, sparse=6, evals=2))
    assert "took 0.25 of a dense one: 500.0 ms of 2.00 s" in said(run)


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


def test_the_picture_grows_by_the_strip(host):
    from fpsattention.kernels.presets import preset

    settings = Settings(preset("mild"), "the test")
    without = report_image(settings, [run_of(step(1.0, 2.0, dense=3))], {})
    timed = run_of(step(1.0, 2.0, dense=3, blocks=[0.5, 1.0, 0.0]), step(0.5, 2.0, sparse=3))
    image = report_image(settings, [timed], {})
    assert image.shape[1] > without.shape[1]
    colors = {tuple(round(c * 255) for c in pixel) for pixel in image[0, 380:520, ::4].reshape(-1, 3).tolist()}
    assert (8, 48, 107) in colors
