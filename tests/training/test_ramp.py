"""A ramp starts from everything, ends at the schedule itself, and never sees less in between."""

from __future__ import annotations

from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import plans_for
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.loop import fit
from fpsattention.training.ramp import Ramp
from fpsattention.training.sparse import SparseAttention
from hypothesis import given, settings
from hypothesis import strategies as st

GRID = TokenGrid(6, 8, 10)
ATTENTION = SparseAttention(Schedule.parse("0.9 fp8 x4 all 2 30%\n0.5 dense\n0.2 bf16 - 2 2 2\n0 fp8 x1 50% all 4"), 16)


def test_a_ramp_begins_full_and_ends_at_the_schedule():
    ramp = Ramp(steps=100, stages=4, fp8_after=30)
    first, last = ramp.at(ATTENTION, 0, GRID), ramp.at(ATTENTION, 100, GRID)
    assert last is ATTENTION
    assert all(phase.is_full for phase in first.schedule.phases)
    assert [phase.attention for phase in first.schedule.phases] == ["bf16", "dense", "bf16", "bf16"]
    assert [phase.attention for phase in ramp.at(ATTENTION, 30, GRID).schedule.phases] == [
        "fp8",
        "dense",
        "bf16",
        "fp8",
    ]
    assert len({ramp.at(ATTENTION, step, GRID).schedule for step in range(30, 130)}) <= 5
    assert Ramp().at(ATTENTION, 0, GRID) is ATTENTION
    late = Ramp(fp8_after=5).at(ATTENTION, 4, GRID).schedule.phases[0]
    assert (late.attention, late.granularity, late.window) == ("bf16", None, ATTENTION.schedule.phases[0].window)


def test_the_log_tells_what_ran_not_what_is_aimed_at(make_config, samples):
    config = make_config(attention__schedule="0 bf16 - 1 1 1", ramp__steps=1, optim__steps=2, optim__warmup=0)
    first, last = fit(config, samples, progress=None).records
    assert first["density"] == 1.0 > last["density"]
    assert first["flops"] > last["flops"]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6))
def test_density_falls_step_by_step_and_phases_stay_in_place(steps, stages):
    ramp = Ramp(steps, stages)
    for sigma in (0.95, 0.3, 0.1):
        densities = []
        for step in range(0, steps + 2, max(1, steps // 7)):
            now = ramp.at(ATTENTION, step, GRID)
            assert now.phase(sigma) == ATTENTION.phase(sigma)
            densities.append(plans_for(now.schedule, GRID, 2, slots=16).density(sigma))
        assert densities == sorted(densities, reverse=True)
        assert densities[0] == 1.0
