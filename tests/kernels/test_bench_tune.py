"""Tuning and peers without a card: what is called shipped is what runs, and what other libraries would be given."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fpsattention.kernels import triton_runtime
from fpsattention.kernels.attention import make_spec, reference
from fpsattention.kernels.bench import tune
from fpsattention.kernels.bench.attention_cell import check
from fpsattention.kernels.bench.cells import Cell
from fpsattention.kernels.bench.peers import dense, sparge
from fpsattention.kernels.bench.problem import Problem
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.patterns import density
from fpsattention.kernels.plan import Plans
from fpsattention.kernels.schedule import Schedule

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("capability", [80, 89, 90, 100, 120])
@pytest.mark.parametrize("grid", [(21, 45, 80), (13, 30, 52)], ids=["even", "uneven"])
@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize(
    "row", ["fp8 x1 all all all", "fp8 x1 all 15 20", "fp8 token all 15 20", "fp8 token all all all"]
)
def test_the_first_candidate_is_what_a_call_takes(row, slots, grid, capability):
    pytest.importorskip("triton")
    from fpsattention.kernels.attention import triton_forward
    from fpsattention.kernels.bench.recording import recording

    grid = TokenGrid(*grid)
    plan = Plans(Schedule.parse(f"0.00 {row}"), grid, 2, slots=slots).at(0.5, device="meta")
    spec = make_spec(plan, plan.lists, "triton-fp8" if capability >= 89 else "triton-int8")
    inputs = [torch.empty(1, grid.tokens, 2, 128, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    with recording(capability) as launches:
        found = tune.candidates(spec, torch.device("meta"), 128)
        triton_forward.forward(*inputs, spec)
        triton_forward.forward(*inputs, spec, config=found[0])
    ours = [launch for launch in launches if launch.name == "sparse_attention_forward"]
    assert len(ours) == 2 and ours[0].options == ours[1].options and ours[0].grid == ours[1].grid


def test_every_candidate_is_asked_of_the_runtime_that_is_replaced(monkeypatch):
    monkeypatch.setattr(triton_runtime, "capability", lambda device: 90)
    problem = Problem(Cell("x", "tune", (2, 8, 8), 1, 1, 64, 25), CPU, torch.bfloat16)
    plan = problem.plan(128)
    found = tune.candidates(make_spec(plan, plan.lists, "triton-fp8"), CPU, 64)
    assert found[0].descriptors and len(found) > 1


@pytest.mark.parametrize("grid", [(2, 8, 16), (3, 7, 25)])
def test_runs_without_dead_rows_are_a_plan_of_their_own(grid):
    cell = Cell("x", "attention", grid, 2, 1, 64, 50)
    problem = Problem(cell, CPU, torch.float32)
    plan, mask = sparge.runs_of(problem.plan(sparge.SLOTS, "bf16"))
    index = plan.layout.index
    tokens = grid[0] * grid[1] * grid[2]
    assert sorted(index[index >= 0].tolist()) == list(range(tokens)) and (index[:-1] >= 0).all()
    live = plan.layout.live.numpy()
    assert plan.density == pytest.approx(float(density(mask, live)))
    # Dense attention under the block map's mask is what the plan's lists mean.
    order = index.reshape(-1)[: len(index.reshape(-1)[index.reshape(-1) >= 0])]
    for hopper in (True, False):
        blocks = sparge.block_map(mask, tokens, hopper)
        size = (64, 128) if hopper else (128, 64)
        assert blocks.shape == (-(-tokens // size[0]), -(-tokens // size[1]))
        seen = np.kron(blocks, np.ones(size, dtype=bool))[:tokens, :tokens]
        q, k, v = (x[:, order].transpose(1, 2) for x in (problem.q, problem.k, problem.v))
        want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.from_numpy(seen))
        spec = make_spec(plan, plan.lists, "reference")
        out = reference.forward(problem.q, problem.k, problem.v, spec)[0][:, order].transpose(1, 2)
        torch.testing.assert_close(out, want, atol=1e-4, rtol=1e-3)


def test_spargeattn_gets_its_block_map_and_gives_token_order(monkeypatch):
    def stand_in(q, k, v, mask_id):
        assert q.is_contiguous() and mask_id.is_contiguous() and mask_id.dtype == torch.int8
        seen = mask_id.bool().repeat_interleave(64, 2).repeat_interleave(128, 3)[:, :, : q.shape[2], : q.shape[2]]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    monkeypatch.setitem(sys.modules, "spas_sage_attn", SimpleNamespace(block_sparse_sage2_attn_cuda=stand_in))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    problem = Problem(Cell("x", "attention", (3, 7, 25), 2, 2, 64, 50), CPU, torch.bfloat16)
    prepared = sparge.ALL[0].prepare(problem)
    assert 0 < prepared.density < 1
    assert check(problem, prepared)["error"] < 1e-2


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("several", [False, True])
def test_flashattention_is_a_dense_baseline_in_token_order(several, direction, monkeypatch):
    def stand_in(q, k, v):
        out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
        return (out, None) if several else out

    monkeypatch.setitem(sys.modules, "flash_attn_interface", SimpleNamespace(flash_attn_func=stand_in))
    (fa3,) = [contestant for contestant in dense.ALL if contestant.name == "fa3"]
    problem = Problem(Cell("x", "attention", (2, 5, 6), 2, 1, 64, 100, direction), CPU, torch.bfloat16)
    assert check(problem, fa3.prepare(problem))["status"] == "ok"


SWITCH = """
import torch
from fpsattention.kernels.bench import model
from fpsattention.kernels.bench.cells import Cell
torch.set_num_threads(1)
cell = Cell("x", "model", (1, 4, 4), heads=2, model="tiny", schedule="0.00 fp8 x1 all all all", compiled=True)
step = model.Step(cell, torch.device("cpu"))
step()
counts = [model.graphs()]
for dense in ("torch", "fa2"):
    step.state.dense = dense
    step()
    counts.append(model.graphs())
print("COUNTS", *counts)
"""


def test_a_switch_of_the_dense_attention_compiles_a_block_again():
    """Torch chooses its attention while it traces: a graph of one must not serve the other."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # In a process of its own: a torchvision that does not fit is hidden from everything in it.
    done = subprocess.run(
        [sys.executable, "-c", SWITCH], env=env, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    first, same, other = map(int, done.stdout.split("COUNTS")[1].split())
    assert first == same < other
