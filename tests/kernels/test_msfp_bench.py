"""The benchmark's cell of 4-bit layers without a card, and what the ops do where no kernel runs."""

from __future__ import annotations

import json

import pytest
import torch
from fpsattention.kernels.bench import msfp_cell
from fpsattention.kernels.bench.cells import Cell, msfp_cells
from fpsattention.kernels.bench.report import table
from fpsattention.kernels.bench.store import plain
from fpsattention.kernels.msfp import ops, triton_msfp
from fpsattention.kernels.msfp.formats import E2M1
from fpsattention.kernels.msfp.inputs import STATIC, InputQuantizer

CPU = torch.device("cpu")


def layer(rows: int = 16, columns: int = 64):
    return msfp_cell.packed_layer(rows, columns, CPU, torch.Generator().manual_seed(0))


def test_cells_have_shapes_of_wan():
    cells = msfp_cells(False)
    assert len({cell.id for cell in cells}) == len(cells)
    tokens = {cell.id: torch.Size(cell.grid).numel() for cell in cells}
    assert tokens["msfp-wan2.1-14b-720p"] == 75_600 and tokens["msfp-wan2.1-1.3b-480p"] == 32_760
    assert {tokens[f"msfp-wan2.1-14b-{kind}"] for kind in ("text", "time")} == {512, 1}
    assert msfp_cell.shapes("wan2.1-14b", 75_600)["ffn.0"] == (13824, 5120)
    assert msfp_cell.shapes("wan2.1-1.3b", 512) == {"attention": (1536, 1536)}


@pytest.mark.parametrize("cell", msfp_cells(True), ids=lambda cell: cell.id)
def test_a_cell_runs_without_a_card(cell):
    saved = []
    result = msfp_cell.run(Cell.from_json(cell.to_json()), CPU, saved.append)
    assert result["status"] == "ok" and "CUDA" in result["kernels"] and saved
    for row in result["layers"]:
        assert row["equal"] and row["error"] <= msfp_cell.TOLERANCE and not row["failed"]
        assert {"bf16", "4 bits", "dequantize", "round input"} <= set(row["calls"])
        # Half a byte a number, and 16 bits per 32 numbers of scales.
        assert row["packed_bytes"] * 32 == row["bf16_bytes"] * 9
        moved = row["calls"]["dequantize"]
        assert moved["bytes"] == row["packed_bytes"] + row["bf16_bytes"] and moved["gb_per_s"] > 0
    kept = {"header": {}, "cells": {cell.id: {**plain(result), "cell": json.loads(cell.to_json())}}}
    said = table(kept)
    assert f"## {cell.id}" in said and "4 bits, 4-bit input" in said and "equal plain torch to the bit" in said


def test_a_wrong_kernel_fails_the_cell(monkeypatch):
    right = ops.dequantize
    monkeypatch.setattr(ops, "dequantize", lambda weight, dtype: right(weight, dtype) * 1.02)
    result = msfp_cell.run(msfp_cells(True)[0], CPU)
    assert result["status"] == "failed" and "not that of plain torch" in result["message"]


# --- ops without kernels


def test_a_cpu_has_a_reason_for_plain_torch():
    reason = ops.why_plain(layer(), None, CPU)
    assert reason == triton_msfp.why_not(CPU) and "CUDA" in reason


@pytest.mark.parametrize(
    ("rows", "dtype", "fused"),
    [
        (0, torch.bfloat16, False),
        (1, torch.bfloat16, True),
        (64, torch.float16, True),
        (65, torch.bfloat16, False),
        (1, torch.float32, False),
    ],
)
def test_where_the_product_is_fused(rows, dtype, fused):
    assert triton_msfp.fuses(rows, dtype) == fused


def test_plain_layers_compile_in_one_graph_and_round_the_same():
    weight, quantizer = layer(), InputQuantizer(E2M1, STATIC, 2.0)

    def forward(x):
        return ops.linear(x, weight, None, quantizer)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for rows in (3, 5000):
        x = torch.randn(rows, 64)
        assert torch.equal(compiled(x), forward(x))
