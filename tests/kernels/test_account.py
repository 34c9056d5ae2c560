"""The account of a kernel's time: the model on known numbers, its block in the README, measured beside predicted."""

from __future__ import annotations

import math

import pytest
from fpsattention.kernels.bench import account
from fpsattention.kernels.bench.store import newest

EVERYTHING_NEAR = account.Card(l2=math.inf)


def row(per_element: float, matrix: str, count: int) -> dict:
    """A forward kernel of 64 rows and 128 keys per step, so 2048 score elements per warp and pass."""
    loop = {
        "per_element": per_element,
        "elements": 2048.0,
        "mma": {matrix: count},
        "classes": {"ex2": 1.0, "max": 1.0},
        "counts": {"IADD3": 64},
    }
    constants = {"BLOCK_M": 64, "D": 128}
    return {"variant": "fp8 x1 dense", "kernel": "sparse_attention_forward", "constants": constants, "loop": loop}


# Eight products of 32 numbers, or sixteen of 16, make Q K and P V of 64 x 128 pairs. The TFLOP/s are the known ones of
# a Hopper at 1.755 GHz and 6.6 instructions per element: everything overlapped, in turn, nothing overlapped.
@pytest.mark.parametrize(
    ("matrix", "count", "speeds"),
    [
        ("QGMMA.64x128x32.F32.E4M3.E4M3", 8, (1898, 949, 672)),
        ("HGMMA.64x128x16.F32.BF16", 16, (949, 633, 496)),
    ],
)
def test_the_ceilings_of_a_hopper(matrix, count, speeds):
    card = EVERYTHING_NEAR
    unit = account.units(row(6.6, matrix, count), card)
    work = 512 * card.multiprocessors * card.clock / 1e12
    found = [work / clocks for clocks in (unit.overlapped, unit.in_turn, unit.serial)]
    assert found == pytest.approx(speeds, rel=0.005)


def test_what_bounds_a_kernel():
    name = "QGMMA.64x128x32.F32.E4M3.E4M3"
    assert account.units(row(6.6, name, 8), EVERYTHING_NEAR).bound == "matrix + exponentials"
    assert account.units(row(12.0, name, 8), EVERYTHING_NEAR).bound == "matrix + issue"
    assert account.units(row(6.6, name, 8), account.Card()).bound == "L2"
    # K and V, 128 bytes each per key, for 64 rows: 4 bytes per element.
    card = account.Card()
    assert account.units(row(6.6, name, 8), card).l2 == pytest.approx(4 * card.multiprocessors * card.clock / card.l2)


def test_a_narrow_product_costs_a_wider_one():
    few = account.units(row(6.6, "QGMMA.64x16x32.F32.E4M3.E4M3", 8), EVERYTHING_NEAR).matrix
    assert few == pytest.approx(account.units(row(6.6, "QGMMA.64x32x32.F32.E4M3.E4M3", 8), EVERYTHING_NEAR).matrix)


@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize("density", [50, 15, 5])
def test_pairs_are_the_density_and_the_padding(slots, density):
    computed, exact = account.pairs(slots, density)
    # Tiles of 3 x 5 x 4 or 3 x 5 x 8 tokens divide the grid: 15 of 16 rows live.
    assert exact * math.prod(account.GRID) ** 2 / computed == pytest.approx((15 / 16) ** 2)
    assert exact == pytest.approx(density / 100, rel=0.05)


def test_every_case_is_recorded_and_predicted():
    card, rows = account.Card(), account.recorded()
    for case in account.CASES:
        said = [account.predict(case, density, rows, card) for density in case.densities]
        assert all(0 < x.overlapped <= x.in_turn <= x.serial for x in said)
        assert [x.in_turn for x in said] == sorted((x.in_turn for x in said), reverse=True)


def test_measured_stands_beside_predicted():
    cell = {"kind": "attention", "density": 15, "direction": "forward", "heads": 40, "grid": [21, 45, 80], "batch": 1}
    contestants = {
        "triton-fp8-64": {"family": "ours", "status": "ok", "ms": 30.0, "density": 0.15},
        "cudnn": {"family": "dense", "status": "ok", "ms": 200.0, "density": 1.0},
    }
    result = {"cells": {"x": {"cell": cell, "status": "ok", "contestants": contestants}}}
    lines = account.block(result).splitlines()
    (line,) = [line for line in lines if line.startswith("| FP8, 64 slots | 15.0 %")]
    assert line.endswith("| 30.00 ms, E 1.00 against cudnn |")
    assert sum(line.endswith("| - |") for line in lines) == sum(len(case.densities) for case in account.CASES) - 1
    assert "measured |" not in account.block()


def test_measured_rates_take_the_place_of_assumed_ones():
    ceilings = {"cell": {"kind": "ceilings"}, "status": "ok", "l2": {"tb_per_s": 7.0}, "copy": {"tb_per_s": 4.2}}
    result = {"cells": {"ceilings": ceilings}}
    card = account.card_of(result)
    assert (card.l2, card.memory) == (pytest.approx(7e12), pytest.approx(4.2e12))
    assert "L2 7.0 TB/s, measured; memory 4.2 TB/s, measured" in account.block(result)
    assert "L2 5.5 TB/s, assumed; memory 3.9 TB/s, assumed" in account.block()
    del ceilings["l2"]
    assert account.card_of(result).l2 == account.Card().l2 and account.card_of(None) == account.Card()


def test_a_candidate_for_dense_lists_takes_the_loop_of_windows_until_it_is_recorded():
    case = next(case for case in account.CASES if case.title == "FP8 dense, candidate")
    rows = account.recorded()
    shipped = account.units(account.rows_of(account.CASES[0], rows)[0], account.Card())
    assert account.units(account.rows_of(case, rows)[0], account.Card()).l2 == pytest.approx(shipped.l2 / 2)
    own = {**account.rows_of(case, rows)[0], "variant": case.parts[0][0]}
    assert account.rows_of(case, [*rows, own]) == [own]


def test_work_counts_once():
    said = account.predict(account.CASES[-1], 15, account.recorded(), account.Card())
    work = 3.5 * 4 * account.DIM * math.prod(account.GRID) ** 2 * said.density * account.HEADS
    assert said.tflops == pytest.approx(work / said.in_turn / 1e9)


def test_the_block_is_put_between_its_markers():
    text = f"a\n{account.BEGIN}\nold\n{account.END}\nb\n"
    assert account.place(text, "new\n") == f"a\n{account.BEGIN}\nnew\n{account.END}\nb\n"
    with pytest.raises(ValueError, match="account:begin"):
        account.place("nothing", "new\n")


def test_the_readme_is_current():
    if not account.README.exists() or account.BEGIN not in account.README.read_text(encoding="utf-8"):
        pytest.skip("kernels/README.md has no account yet")
    found = newest()
    text = account.README.read_text(encoding="utf-8")
    assert account.place(text, account.block(found and found[1])) == text, (
        "run: python -m kernels.machine_code --account --write"
    )
