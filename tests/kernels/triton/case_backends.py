"""The Triton backends against the plain-torch reference, through the pack's own plans. Run by test_interpreted.py.

Outputs are rounded to bfloat16 on both sides, so a relative L2 of 1e-3 allows a few neighbors for FP8 (none seen), and
4e-3 allows the BF16 kernel's rounded weights (the reference keeps float32). LSE and maximum are float32.
"""

from __future__ import annotations

import dataclasses

import interpreter
import pytest
import scene
import torch

interpreter.correct()

from fpsattention.kernels.attention import fps_attention, make_spec, op, resolve_backend  # noqa: E402
from fpsattention.kernels.grid import TokenGrid  # noqa: E402
from fpsattention.kernels.plan import plans_for  # noqa: E402
from fpsattention.kernels.schedule import Schedule  # noqa: E402

GRID = TokenGrid(4, 7, 9, prefix=5, suffix=13)  # no axis divides by a tile: tiles of different live counts
HEADS = 2


def plan(line: str):
    schedule = Schedule.parse(f"# fps-schedule v1, unit sigma\n0.00 {line}\n")
    return plans_for(schedule, GRID, HEADS, slots=64).at(0.5)


def forward(p, backend: str, q, k, v, form: str | None = None):
    spec = make_spec(p, p.lists, backend)
    if form:
        spec = dataclasses.replace(spec, format=form)
    return op.attention_forward(q, k, v, *spec.tensors, *spec.scalars, backend)


@pytest.mark.parametrize("line", ["fp8 token all 4 5", "fp8 x1 2 4 5", "fp8 x2 all all all"])
def test_fp8_is_the_reference(line):
    q, k, v = scene.tensors(1, GRID.tokens, HEADS, 128)
    p = plan(line)
    out, lse, rowmax = forward(p, "triton-fp8", q, k, v)
    expected, expected_lse, expected_max = forward(p, "reference", q, k, v)
    assert scene.error(out, expected) < 1e-3
    assert torch.allclose(lse, expected_lse, atol=1e-4) and torch.equal(rowmax, expected_max)


@pytest.mark.parametrize("line", ["fp8 token all 4 5", "fp8 x2 2 4 5"])
def test_int8_is_the_reference(line):
    q, k, v = scene.tensors(1, GRID.tokens, HEADS, 128)
    p = plan(line)
    out, lse, rowmax = forward(p, "triton-int8", q, k, v)
    expected, expected_lse, expected_max = forward(p, "reference", q, k, v, "int8")
    assert scene.error(out, expected) < 4e-3
    assert torch.allclose(lse, expected_lse, atol=1e-4) and torch.equal(rowmax, expected_max)


def test_bf16_is_the_reference():
    q, k, v = scene.tensors(1, GRID.tokens, HEADS, 128)
    p = plan("bf16 - 2 4 5")
    out, lse, _ = forward(p, "triton-bf16", q, k, v)
    expected, expected_lse, _ = forward(p, "reference", q, k, v)
    assert scene.error(out, expected) < 4e-3
    assert torch.allclose(lse, expected_lse, atol=1e-4)


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (0, 48), (257, 1)], ids=str)
@pytest.mark.parametrize(("line", "dim"), [("fp8 x1 all 3 4", 128), ("bf16 - all 3 4", 64)])
def test_gradients_are_the_references_with_extra_tokens(line, dim, extra):
    """Products are bf16 on one side and float32 on the other: 1e-2."""
    grid = TokenGrid(2, 5, 7, *extra)
    schedule = Schedule.parse(f"0.00 {line}")
    p = plans_for(schedule, grid, 1, slots=32).at(0.5)
    q, k, v = scene.tensors(1, grid.tokens, 1, dim)
    grad = scene.tensors(1, grid.tokens, 1, dim, seed=2)[0]
    results = {}
    for backend in (f"triton-{p.attention}", "reference"):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = fps_attention(*inputs, p, backend=backend)
        results[backend] = [out.detach(), *torch.autograd.grad(out, inputs, grad)]
    for ours, expected in zip(*results.values()):
        assert scene.error(ours.float(), expected.float()) < 1e-2


def test_torch_accepts_the_op_with_the_kernels():
    grid = TokenGrid(2, 3, 5)
    p = plans_for(Schedule.parse("0.00 fp8 x1 all 3 4"), grid, 1, slots=32).at(0.5)
    inputs = [x.requires_grad_() for x in scene.tensors(1, grid.tokens, 1, 64)]
    spec = make_spec(p, p.lists, "triton-fp8")
    torch.library.opcheck(op.attention_forward, (*inputs, *spec.tensors, *spec.scalars, "triton-fp8"))


def test_auto_takes_the_kernel_in_the_interpreter():
    q, k, v = scene.tensors(1, GRID.tokens, HEADS, 128)
    p = plan("fp8 x1 2 4 5")
    assert resolve_backend("auto", q.device, q.dtype, 128, "fp8") == ("triton-fp8", None)
    out = fps_attention(q, k, v, p)
    assert torch.equal(out, fps_attention(q, k, v, p, backend="triton-fp8"))
