"""Runs and steps: counting, densities, and which runs a report shows."""

from __future__ import annotations

import pytest
import torch
from fpsattention.nodes import record
from fpsattention.nodes.record import MAX_RUNS, Recorder, Run, Step


def make(sigma: float = 1.0, **values) -> Step:
    return Step(sigma=sigma, index=0, phase=0, attention="fp8", **values)


def test_density_mixes_sparse_and_dense():
    step = make(planned_density=0.1)
    for density in (None, 0.1, 0.1):
        step.attend(density)
    assert step.density == pytest.approx(0.1)
    step.decline("why", 1)
    assert step.density == pytest.approx((3 * 0.1 + 1) / 4)
    assert make().density == 1.0
    assert step.reasons == {"why": 1}
    step.attend(0.3)
    assert step.density == pytest.approx((3 * 0.1 + 0.3 + 1) / 5), "calls of other grids count with their own density"


def test_work_is_the_mean_over_calls():
    run = Run(None, None, None, 1)
    run.steps = {1.0: make(sparse=2, work=0.4), 0.5: make(0.5, dense=2)}
    assert run.work == pytest.approx(0.6)


def test_evaluations_of_one_sigma_share_a_step():
    recorder = Recorder()
    recorder.begin()
    first = recorder.step(0.9, lambda: make(0.9))
    assert recorder.step(0.9000000001, lambda: make(0.9)) is first
    assert first.evaluations == 2
    assert recorder.step(0.8, lambda: make(0.8)) is not first


def test_the_clock_runs_from_step_to_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(record.time, "perf_counter", lambda: now[0])
    recorder = Recorder()
    recorder.begin()
    a = recorder.step(0.9, lambda: make(0.9))
    now[0] = 2.0
    b = recorder.step(0.8, lambda: make(0.8))
    now[0] = 5.0
    recorder.step(0.9, lambda: make(0.9))
    now[0] = 6.0
    recorder.end()
    now[0] = 60.0
    recorder.end()
    assert (a.seconds, b.seconds) == (3.0, 3.0)


def test_old_runs_are_dropped():
    recorder = Recorder()
    for _ in range(MAX_RUNS + 5):
        recorder.begin()
    assert len(recorder.runs) == MAX_RUNS
    assert recorder.runs[-1].number == MAX_RUNS + 5
    assert all(run.finished for run in list(recorder.runs)[:-1])


def test_notes_are_said_once(caplog):
    run = Run(None, None, None, 1)
    with caplog.at_level("INFO"):
        run.note("once")
        run.note("once")
    assert run.notes == ["once"] and caplog.text.count("once") == 1


def test_select_takes_the_latest_prompt_of_each_node(monkeypatch):
    recorder = Recorder()
    for prompt, node in (("a", "3"), ("a", "7"), ("b", "3"), ("b", "3"), ("b", "9")):
        monkeypatch.setattr(record, "executing_node", lambda p=prompt, n=node: (p, n, None))
        recorder.begin()
        recorder.end()
    numbers = [run.number for run in recorder.select({"3", "7"})]
    assert numbers == [2, 3, 4], "node 3 ran twice in its latest prompt, node 7 was cached then"
    assert len(recorder.select(None)) == 5
    assert recorder.select({"99"}) == []


def test_an_unannounced_sampler_gets_a_run():
    recorder = Recorder()
    assert recorder.current() is recorder.current()


def test_densities_on_the_device_are_read_when_the_run_is_over():
    recorder = Recorder()
    step = recorder.step(0.9, lambda: make(0.9))
    for block, density in ((0, 0.25), (1, 0.5), (0, 0.75), (None, 0.1)):
        step.attend_online(block, torch.tensor(density))
    assert step.density == 1.0 and step.layers == {}
    recorder.end()
    assert step.density == pytest.approx(0.4)
    assert {block: (round(total, 6), calls) for block, (total, calls) in step.layers.items()} == {
        0: (1, 2),
        1: (0.5, 1),
    }


def test_so_many_densities_wait_at_most(monkeypatch):
    monkeypatch.setattr(record, "_MANY", 3)
    step = make()
    for _ in range(7):
        step.attend_online(2, torch.tensor(0.5))
    assert len(step._unread) == 1 and step.layers == {2: (3.0, 6)}


def test_a_device_that_broke_costs_the_densities_alone():
    class Broken:
        def detach(self):
            raise RuntimeError("CUDA error: device-side assert triggered")

    recorder = Recorder()
    run = recorder.begin()
    recorder.step(0.9, lambda: make(0.9)).attend_online(0, Broken())
    recorder.end(RuntimeError("another"))
    assert run.finished and run.stopped == "RuntimeError"
    assert "could not be read from the device (CUDA error" in run.notes[0]
