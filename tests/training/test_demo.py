"""The demo's arithmetic: which rows, which ratio, and when no ratio is stated."""

from __future__ import annotations

import pytest
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.demo import table
from fpsattention.training.demo.rows import Row, fp8_alone, recovered
from fpsattention.training.evaluate import Validation
from fpsattention.training.sparse import DENSE, SparseAttention


def rows(**losses: float) -> dict[str, Row]:
    return {
        key: Row(key, f"row {key}", "base", DENSE, Validation(loss, {0.9: loss, 0.5: loss}, 4, 0.0), 1.0)
        for key, loss in losses.items()
    }


def test_the_strict_ratio_is_taken_against_both_controls():
    result = rows(base=1.0, A=1.2, D=0.9, B=1.1, C=1.0)
    assert recovered(result) == pytest.approx(0.5)
    assert "**50%**" in table.markdown(result, {})


@pytest.mark.parametrize("losses", [{"A": 1.02, "B": 1.1}, {"A": 1.2, "B": 0.9}], ids=["small gap", "no gap"])
def test_no_ratio_is_stated_where_there_is_no_gap(losses):
    result = rows(base=1.0, D=0.9, C=0.95, **losses)
    assert recovered(result) is None
    assert "not stated" in table.markdown(result, {})


def test_fp8_alone_opens_every_window_and_keeps_the_rest():
    text = "0.90 dense\n0.50 fp8 x2 all 4 4\n0.00 bf16 - 2 50% 4"
    opened = fp8_alone(SparseAttention(Schedule.parse(text), slots=16)).schedule
    assert opened == Schedule.parse("0.90 dense\n0.50 fp8 x2 all all all\n0.00 bf16 - all all all")


def test_the_table_says_what_it_does_not_show():
    text = table.markdown(rows(base=1.0, fp8=1.0, A=1.2, D=0.9, B=1.1, C=1.0), {"videos": "none"})
    assert "does not show" in text
    assert "- videos: none" in text
