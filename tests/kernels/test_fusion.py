"""Mixed heads in one call: how many calls each way makes, equal outputs, and the benchmark's cell around it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fpsattention.kernels.attention import op
from fpsattention.kernels.bench import heads_cell
from fpsattention.kernels.bench.cells import Cell, heads_cells
from fpsattention.kernels.bench.heads_fusion import WAYS, compare, counted, ways
from fpsattention.kernels.bench.report import table
from fpsattention.kernels.bench.timing import Clock
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.measure_patterns import Call, random_inputs
from fpsattention.kernels.pattern_text import parse_pattern
from fpsattention.kernels.patterns import Skip
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("full", "skip", "window 1 all all", "window all 30% 30%", "window 40% 60% 60% + first 1", "first 1")
PATTERNS = [parse_pattern(word) for word in WORDS]
CLOCK = Clock(torch.device("cpu"))
FP8 = Call("cpu", 6, 64, dtype=torch.float32, backend="reference")
BF16 = replace(FP8, attention="bf16", granularity=None)
# Products of other shapes sum in another order; a weight on the edge between two FP8 numbers may then go to the other.
SAME = {"bf16": 2e-6, "fp8": 2e-3}


def outputs(call: Call, tiling, chosen, seed=0):
    inputs = random_inputs(tiling, replace(call, heads=len(chosen)), seed)
    return inputs, ways(PATTERNS, tiling, call, np.array(chosen), inputs)


def oracle(inputs, tiling, chosen) -> torch.Tensor:
    """Softmax in float64 under a dense mask of tokens, head by head; a row that sees nothing is zero."""
    q, k, v = (x.double() for x in inputs)
    tile = torch.from_numpy(np.array(tiling.tile_of_token))
    out = torch.zeros_like(q)
    for h, number in enumerate(chosen):
        mask = torch.from_numpy(PATTERNS[number].mask(tiling))[tile][:, tile]
        for b in range(len(q)):
            scores = q[b, :, h] @ k[b, :, h].T / math.sqrt(q.shape[-1])
            weights = torch.softmax(scores.masked_fill(~mask, -math.inf), -1).nan_to_num(0.0)
            out[b, :, h] = weights @ v[b, :, h]
    return out


grids = st.builds(
    TokenGrid, st.integers(1, 4), st.integers(4, 11), st.integers(4, 11), st.integers(0, 5), st.integers(0, 5)
)


@settings(max_examples=20, deadline=None)
@given(grids, st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=7), st.integers(0, 99))
def test_all_ways_are_attention_under_each_heads_own_mask(grid, chosen, seed):
    tiling = choose_tiling(grid, 64)
    inputs, calls = outputs(BF16, tiling, chosen, seed)
    want = oracle(inputs, tiling, chosen)
    for name, call in calls.items():
        error = float((call().double() - want).norm() / want.norm().clamp_min(1e-30))
        assert error < 2e-6, (name, error)


@pytest.mark.parametrize(
    "call", [FP8, replace(FP8, granularity="x2"), replace(FP8, granularity="token"), BF16], ids=str
)
@pytest.mark.parametrize("grid", [TokenGrid(3, 8, 16), TokenGrid(3, 13, 17, 3, 7)], ids=["even", "ragged"])
def test_the_ways_agree_and_make_1_and_p_and_h_calls(call, grid):
    chosen = [4, 0, 3, 1, 3, 2]
    _, calls = outputs(call, choose_tiling(grid, 64), chosen)
    found = compare(calls, CLOCK)
    # Heads that skip are not called in the other ways: patterns 0, 2, 3, 4 and five heads.
    assert [found[name]["calls"] for name in WAYS] == [1, 4, 5]
    assert all(found[name]["distance"] <= SAME[call.attention] for name in WAYS), found


def test_what_is_wrong_is_seen():
    """The comparison can fail: a way that mixes up two heads is far off."""
    tiling = choose_tiling(TokenGrid(3, 8, 16), 64)
    inputs, calls = outputs(BF16, tiling, [3, 0, 2])
    calls["wrong"] = ways(PATTERNS, tiling, BF16, np.array([0, 3, 2]), inputs)[WAYS[0]]
    found = compare(calls, CLOCK)
    assert not found["wrong"]["equal"] and found["wrong"]["distance"] > 0.01


@pytest.mark.parametrize("call", [FP8, BF16], ids=["fp8", "bf16"])
def test_heads_that_skip_are_zero(call):
    chosen = [1, 3, 1, 0]
    _, calls = outputs(call, choose_tiling(TokenGrid(2, 9, 11), 64), chosen)
    for name, run in calls.items():
        out = run()
        assert [bool((out[:, :, h] == 0).all()) for h in range(4)] == [True, False, True, False], name


def test_nothing_but_skip_is_called_once_or_not_at_all():
    _, calls = outputs(FP8, choose_tiling(TokenGrid(2, 9, 11), 64), [1, 1])
    found = compare(calls, CLOCK)
    assert [found[name]["calls"] for name in WAYS] == [1, 0, 0] and all(row["equal"] for row in found.values())


def test_counting_ends_with_its_block():
    before = op.run_forward
    with pytest.raises(RuntimeError, match="on purpose"), counted(CLOCK):
        raise RuntimeError("on purpose")
    assert op.run_forward is before


LAUNCHES = """
import sys, numpy as np, torch
sys.path.insert(0, sys.argv[1])
import interpreter
interpreter.correct()
from fpsattention.kernels.bench.heads_fusion import WAYS, compare, ways
from fpsattention.kernels.bench.timing import Clock
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.measure_patterns import Call, random_inputs
from fpsattention.kernels.pattern_text import parse_pattern
tiling = choose_tiling(TokenGrid(2, 8, 12), 64)
patterns = [parse_pattern(w) for w in ("full", "skip", "window all 1 all", "first 1")]
for attention, granularity in (("fp8", "x1"), ("bf16", None)):
    call = Call("cpu", 4, 64, attention, granularity, backend=f"triton-{attention}")
    inputs = random_inputs(tiling, call)
    found = compare(ways(patterns, tiling, call, np.array([2, 0, 1, 2]), inputs), Clock(torch.device("cpu")))
    for name in WAYS:
        print(attention, found[name]["calls"], found[name]["launches"].get("attention", 0), found[name]["equal"])
"""


def test_the_kernel_is_launched_once_for_mixed_heads():
    """In Triton's interpreter, which needs a process of its own: attention kernels counted where they are launched."""
    pytest.importorskip("triton")
    helpers = str(ROOT / "tests" / "kernels" / "triton")
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LAUNCHES, helpers]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:6] == [
        "fp8 1 1 True", "fp8 2 2 True", "fp8 3 3 True", "bf16 1 1 True", "bf16 2 2 True", "bf16 3 3 True",
    ]  # fmt: skip


def test_the_cell_records_costs_plans_and_ways(monkeypatch):
    """The arithmetic of the record, on a grid so small that its times say nothing."""
    monkeypatch.setattr(heads_cell, "TURNS", 2)
    monkeypatch.setattr(heads_cell, "CALLS", 1)
    cell = next(cell for cell in heads_cells(True) if cell.label == "fp8")
    saved = []
    result = heads_cell.run(cell, torch.device("cpu"), saved.append)
    assert result["status"] == "ok" and result["backend"] == "reference (CPU)" and len(saved) == 2
    for row in result["plans"]:
        assert row["error"] == pytest.approx(row["predicted_ms"] / row["ms"] - 1)
        assert 0 < row["density"] <= 1 and row["layers"] == heads_cell.LAYERS
    assert result["largest_error"] == max(abs(row["error"]) for row in result["plans"])
    row = result["fusion"]["ways"]
    skipped = [h for h in result["fusion"]["pattern_of_head"] if isinstance(patterns_of(cell)[h], Skip)]
    assert [row[name]["calls"] for name in WAYS][::2] == [1, cell.heads - len(skipped)]
    data = {"standin": True, "header": {}, "cells": {cell.id: {"cell": json.loads(cell.to_json()), **result}}}
    said = table(data)
    assert "reference (CPU)" in said and "STAND-IN" in said and "one call per pattern" in said


def patterns_of(cell: Cell):
    return heads_cell.realistic(choose_tiling(TokenGrid(*cell.grid), cell.slots))


def test_a_plans_tables_are_mixed_and_repeatable():
    cell = Cell("x", "heads", (4, 12, 16), 12, 1, 64, label="fp8")
    tiling = choose_tiling(TokenGrid(*cell.grid), 64)
    patterns = heads_cell.realistic(tiling)
    first, again = heads_cell.tables(patterns, tiling, cell), heads_cell.tables(patterns, tiling, cell)
    assert [t.digest for t in first] == [t.digest for t in again] and len({t.digest for t in first}) == len(first)
    full = [[t.all_full(0, layer) for layer in range(t.layers)] for t in first]
    assert full[0][0] and sum(map(sum, full)) == 1
    assert all(len(np.unique(t.bands[0].chosen[0][1:])) >= 3 for t in first)
