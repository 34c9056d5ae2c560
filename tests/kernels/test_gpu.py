"""The Triton backends on a CUDA card against the plain-torch reference on the same card."""

from __future__ import annotations

import pytest
import torch
from fpsattention.kernels.attention import backends, fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import Plans
from fpsattention.kernels.schedule import Schedule

pytestmark = pytest.mark.gpu

# bf16 outputs round at 2^-9; both sides round the same numbers, so most agree and the rest differ by one rounding.
BOUND = {"triton-fp8": 4e-3, "triton-bf16": 6e-3}


@pytest.mark.parametrize(
    ("grid", "slots"),
    [(TokenGrid(9, 30, 52), 64), (TokenGrid(5, 17, 23, 48, 13), 64), (TokenGrid(9, 30, 52), 128)],
    ids=["480p-33f", "ragged-extra", "480p-33f-128"],
)
@pytest.mark.parametrize(
    "rows", ["fp8 x1 all 50% 40%", "fp8 token 4 10 12", "bf16 - all 30% 30%", "fp8 x2 all all all"]
)
def test_backend_equals_reference(cuda, grid, slots, rows):
    plan = Plans(Schedule.parse(f"0.00 {rows}"), grid, 3, slots=slots).at(0.5, device=cuda)
    generator = torch.Generator(cuda).manual_seed(0)
    q, k, v = (torch.randn(1, grid.tokens, 3, 128, generator=generator, device=cuda).bfloat16() for _ in range(3))
    name = f"triton-{plan.attention}"
    reason = dict(backends(cuda, q.dtype, 128, plan.attention))[name]
    if reason:
        pytest.skip(f"{name}: {reason}")
    ours = fps_attention(q, k, v, plan, backend=name).float()
    reference = fps_attention(q, k, v, plan, backend="reference").float()
    assert torch.linalg.norm(ours - reference) / torch.linalg.norm(reference) <= BOUND[name]


def test_training_step_on_the_card_matches_the_reference(cuda):
    grid = TokenGrid(5, 16, 16)
    plan = Plans(Schedule.parse("0.00 fp8 x1 all 50% 50%"), grid, 2).at(0.5, device=cuda)
    generator = torch.Generator(cuda).manual_seed(1)
    base = [torch.randn(1, grid.tokens, 2, 128, generator=generator, device=cuda).bfloat16() for _ in range(4)]
    grads = {}
    for name in ("auto", "reference"):
        inputs = [x.clone().requires_grad_() for x in base[:3]]
        fps_attention(*inputs, plan, backend=name).backward(base[3])
        grads[name] = [x.grad.float() for x in inputs]
    for ours, reference in zip(*grads.values()):
        assert torch.linalg.norm(ours - reference) / torch.linalg.norm(reference) <= 2e-2
