"""One model call: what is self-attention, VACE's control blocks behind their main block, and what is counted."""

from __future__ import annotations

import pytest
import torch
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import plans_for
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes.clock import BlockClock
from fpsattention.nodes.layout import control_blocks
from fpsattention.nodes.override import (
    CONTROL_ALIKE,
    CONTROL_TAKEN,
    CONTROL_UNKNOWN,
    OUTSIDE,
    REPLACED,
    SKIPPED,
    TAKEN,
    Call,
    Sparse,
)
from fpsattention.nodes.record import Step

GRID, HEADS = TokenGrid(2, 4, 4), 1
PLAN = plans_for(Schedule.parse("0.00 bf16 - 1 all all"), GRID, HEADS, slots=16).at(0.5)


def call_of(*, control: bool = False, repeats: int = 1, blocks: int = 2, **options) -> Call:
    clock = BlockClock()
    clock.prepare(torch.device("cpu"))
    behind = {0: PLAN} if control else {}
    sparse = Sparse([PLAN] * blocks, PLAN.grid.tokens, "reference", control=behind, repeats=repeats, **options)
    return Call(Step(0.5, 0, 0, "bf16"), blocks, clock, sparse)


def attend(call: Call, keys: int = GRID.tokens) -> bool:
    """Ask for attention as the host does; return whether the host's own ran."""
    own = []

    def func(q, k, v, **kwargs):
        own.append(kwargs["heads"])
        return q

    q, k = torch.randn(1, GRID.tokens, 64), torch.randn(1, keys, 64)
    call.override(func, q, k, k, heads=HEADS)
    return own == [HEADS]


def block(call: Call, index: int, *, own: bool = False) -> None:
    assert call.enter(index)
    if not own:
        assert not attend(call), "self-attention runs sparse"
    assert attend(call, 7), "cross-attention is the host's"
    call.leave(index)


def control(call: Call, *, runs: bool = True, own: bool = False) -> None:
    if not own:
        assert attend(call) != runs
    assert attend(call, 7)


def test_main_and_control_blocks():
    call = call_of(control=True, repeats=2)
    block(call, 0)
    control(call)
    control(call)
    block(call, 1)
    call.settle()
    assert (call.step.sparse, call.step.dense, call.step.reasons) == (4, 0, {})
    assert len(call.step.blocks) == 2 and min(call.step.blocks) > 0


def test_a_call_behind_another_block_is_not_a_control_block():
    call = call_of(control=True)
    block(call, 0)
    control(call)
    block(call, 1)
    control(call, runs=False)
    call.settle()
    assert (call.step.sparse, call.step.reasons) == (3, {OUTSIDE: 1})


def test_control_blocks_that_a_head_table_does_not_know():
    call = call_of(control=True, repeats=2)
    call.sparse.control[0] = None
    block(call, 0)
    control(call, runs=False)
    control(call, runs=False)
    block(call, 1)
    call.settle()
    assert (call.step.sparse, call.step.dense, call.step.reasons) == (2, 2, {CONTROL_UNKNOWN: 2})


def test_what_an_online_selector_chose_is_counted_per_block():
    """The control block's counts for the step, and for no block."""
    plan = plans_for(Schedule.parse("0.00 bf16 - topk 0.5"), GRID, HEADS, slots=16).at(0.5)
    call = call_of(control=True)
    call.sparse.plans[:] = [plan, plan]
    call.sparse.control[0] = plan
    block(call, 0)
    control(call)
    block(call, 1)
    call.settle()
    assert call.step.sparse == 3 and call.step.density == 1.0, "not read yet: as planned"
    call.step.read()
    assert sorted(call.step.layers) == [0, 1] and call.step.reasons == {}
    assert 0 < call.step.density < 1
    before = call.step.density
    call.step.read()
    assert call.step.density == before


def test_control_blocks_that_another_node_computes():
    call = call_of(control=True)
    block(call, 0)
    control(call, own=True)
    block(call, 1)
    call.settle()
    assert (call.step.sparse, call.step.reasons) == (2, {CONTROL_TAKEN: 1})


def test_control_blocks_where_text_is_as_long_as_the_video():
    call = call_of(control=True, alike=True)
    block(call, 0)
    assert attend(call) and attend(call)
    block(call, 1)
    call.settle()
    assert (call.step.sparse, call.step.reasons) == (2, {CONTROL_ALIKE: 1})


def test_blocks_that_another_node_computes():
    call = call_of()
    block(call, 0, own=True)
    block(call, 1)
    call.settle()
    assert (call.step.sparse, call.step.dense, call.step.reasons) == (1, 1, {TAKEN: 1})


def test_blocks_without_a_mark_and_calls_that_were_skipped():
    call = call_of()
    block(call, 0)
    assert attend(call) and attend(call, 7)
    call.settle()
    assert call.step.reasons == {REPLACED: 1}
    skipped = call_of()
    skipped.settle()
    assert skipped.step.reasons == {SKIPPED: 0} and skipped.step.dense == 0


def test_a_block_marked_twice_is_entered_once():
    call = call_of(blocks=1)
    assert call.enter(0) and not call.enter(0)


def test_without_sparse_everything_passes_on():
    clock = BlockClock()
    clock.prepare(torch.device("cpu"))
    call = Call(Step(0.5, 0, 0, "dense"), 1, clock)
    assert call.enter(0) and attend(call) and attend(call, 7)
    call.leave(0)
    call.settle()
    assert call.step.reasons == {} and len(call.step.blocks) == 1


@pytest.mark.parametrize(
    ("mapping", "context", "expected"),
    [
        ({0: 0, 2: 1}, torch.zeros(1, 2, 96, 3, 4, 4), ({0: 0, 2: 1}, 2)),
        ({0: 0, 2: 1, 4: 2}, torch.zeros(1, 1, 96, 3, 4, 4), ({0: 0, 2: 1}, 1)),
        ({0: 0}, None, ({}, 1)),
        (None, torch.zeros(1, 1, 96, 3, 4, 4), ({}, 1)),
        ([0, 2], torch.zeros(1, 1, 96, 3, 4, 4), ({}, 1)),
    ],
)
def test_control_blocks_are_known_only_where_the_class_says_them(mapping, context, expected):
    class Vace:
        vace_layers_mapping = mapping
        vace_blocks = (object(), object())

    assert control_blocks(Vace(), {"vace_context": context}) == expected


def test_a_dense_call_counts_once_it_ran():
    call = dense_call()
    assert call.enter(0)
    call.leave(0)
    assert call.step.dense == 0
    call.settle()
    assert (call.step.dense, call.step.skipped, call.step.reasons) == (2, 0, {})
    told = dense_call("a reason")
    told.settle()
    assert (told.step.dense, told.step.reasons) == (2, {"a reason": 2})


def test_a_dense_call_without_a_mark_was_skipped_where_others_have_marks():
    call = dense_call("a reason")
    call.settle(marked=True)
    assert (call.step.dense, call.step.skipped, call.step.reasons) == (0, 1, {SKIPPED: 0})


def test_a_block_that_failed_may_run_again():
    call = call_of(blocks=1)
    assert call.enter(0) and not attend(call)
    call.fail()
    assert call.step.sparse == 0
    block(call, 0)
    call.settle()
    assert (call.step.sparse, call.step.dense, call.step.reasons) == (1, 0, {})


def dense_call(reason: str | None = None) -> Call:
    clock = BlockClock()
    clock.prepare(torch.device("cpu"))
    return Call(Step(0.5, 0, 0, "dense"), 2, clock, dense=2, why_dense=reason)
