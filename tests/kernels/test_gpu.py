"""The Triton backends on a CUDA card against the plain-torch reference on the same card.

With ``GPU_STANDIN=1 TRITON_INTERPRET=1`` the same tests run on small grids in Triton's interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch
from fpsattention.kernels.attention import backends, fps_attention
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import Plans, clear_plans
from fpsattention.kernels.schedule import Schedule

pytestmark = pytest.mark.gpu

# bf16 outputs round at 2^-9; both sides round the same numbers, so most agree and the rest differ by one rounding.
# The reference keeps P in float32 where the 16-bit kernels round it.
BOUND = {"triton-fp8": 4e-3, "triton-bf16": 6e-3, "triton-int8": 6e-3}
GRADIENT_BOUND = 2e-2
STANDIN = os.environ.get("GPU_STANDIN") == "1"
GRIDS = {
    "480p-33f": TokenGrid(9, 30, 52),
    "ragged-extra": TokenGrid(5, 17, 23, 48, 13),
    "one-frame": TokenGrid(1, 45, 80),
    "tiny": TokenGrid(1, 2, 3),
}
ROWS = [
    "fp8 x1 all 50% 40%",
    "fp8 token 4 10 12",
    "fp8 x2 all 20% 20%",
    "fp8 x4 2 50% 50%",
    "fp8 x8 all 10% 10%",
    "fp8 x2 all all all",
    "bf16 - all 30% 30%",
    "bf16 - all all all",
]
GRADIENT_GRIDS = {"even": TokenGrid(5, 16, 16), "ragged": TokenGrid(3, 11, 13, 20, 7)}
LONG = TokenGrid(21, 45, 80)
if STANDIN:
    from fpsattention.kernels.bench import standin

    if reason := standin.prepare():
        pytest.skip(reason, allow_module_level=True)
    GRIDS = {"480p-33f": TokenGrid(2, 5, 6, 3, 2), "tiny": TokenGrid(1, 2, 3)}
    ROWS = [ROWS[0], ROWS[1], ROWS[-1]]
    GRADIENT_GRIDS = {"ragged": TokenGrid(2, 5, 6, 3, 2)}
    LONG = TokenGrid(2, 5, 6)


def scene(cuda, grid, row, slots=64, heads=3, batch=1, dim=128, dtype=torch.bfloat16, seed=0):
    """Return a plan and q, k, v, grad on the card; K has a mean per channel."""
    plan = Plans(Schedule.parse(f"0.00 {row}"), grid, heads, slots=slots).at(0.5, device=cuda)
    generator = torch.Generator(cuda).manual_seed(seed)
    shape = (batch, grid.tokens, heads, dim)
    q, k, v, grad = (torch.randn(shape, generator=generator, device=cuda) for _ in range(4))
    k = k + torch.randn(1, 1, heads, dim, generator=generator, device=cuda)
    return plan, [x.to(dtype) for x in (q, k, v, grad)]


def runnable(cuda, plan, dtype=torch.bfloat16, dim=128) -> list[str]:
    """Return the kernels' backends that run this phase here; skip, saying why, if there is none."""
    table = [(name, reason) for name, reason in backends(cuda, dtype, dim, plan.attention) if name != "reference"]
    names = [name for name, reason in table if reason is None]
    if not names:
        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in table))
    return names


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative L2 error in float64; never small for what is not finite."""
    value = float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))
    return value if value == value else float("inf")


def reference_of(plan, q, k, v, name):
    """Return the reference's output with the rounding of the backend ``name``, in float32 inputs."""
    from fpsattention.kernels.attention import make_spec, reference

    spec = make_spec(plan, plan.lists_for(q, k, v), name)
    return reference.forward(q.float(), k.float(), v.float(), spec)[0]


@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("row", ROWS)
def test_every_backend_equals_the_reference(cuda, grid, row, slots):
    plan, (q, k, v, _) = scene(cuda, grid, row, slots)
    for name in runnable(cuda, plan):
        ours = fps_attention(q, k, v, plan, backend=name)
        assert error(ours, reference_of(plan, q, k, v, name)) <= BOUND[name], name
    clear_plans()


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 2])
def test_dtypes_head_dimensions_and_batches(cuda, dim, dtype, batch):
    for row in ("fp8 x1 all 50% 40%", "bf16 - all 50% 40%"):
        plan, (q, k, v, _) = scene(cuda, GRIDS["480p-33f"], row, batch=batch, dim=dim, dtype=dtype)
        for name in runnable(cuda, plan, dtype, dim):
            ours = fps_attention(q, k, v, plan, backend=name)
            assert ours.dtype == dtype
            assert error(ours, reference_of(plan, q, k, v, name)) <= BOUND[name], name


def test_views_of_a_joint_projection(cuda):
    """Models give q, k, v as strided views; copies must give the same bits."""
    plan, (q, k, v, _) = scene(cuda, GRIDS["480p-33f"], "fp8 x1 all 50% 40%")
    joint = torch.stack((q, k, v), dim=2).flatten(3).flatten(2)
    views = [x.unflatten(-1, (3, 128)) for x in joint.chunk(3, dim=-1)]
    for name in runnable(cuda, plan):
        assert torch.equal(fps_attention(*views, plan, backend=name), fps_attention(q, k, v, plan, backend=name))


@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize("row", ["fp8 x1 all 50% 50%", "fp8 token all all all", "bf16 - all 50% 50%"])
@pytest.mark.parametrize("grid", GRADIENT_GRIDS.values(), ids=GRADIENT_GRIDS.keys())
def test_gradients_equal_the_references(cuda, grid, row, slots):
    plan, (q, k, v, grad) = scene(cuda, grid, row, slots, heads=2)
    for name in runnable(cuda, plan):
        from fpsattention.kernels.attention import make_spec, reference

        spec = make_spec(plan, plan.lists_for(q, k, v), name)
        plain = [x.float() for x in (q, k, v)]
        expected = reference.backward(grad.float(), *plain, *reference.forward(*plain, spec), spec)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        fps_attention(*leaves, plan, backend=name).backward(grad)
        for leaf, want in zip(leaves, expected):
            assert error(leaf.grad, want) <= GRADIENT_BOUND, name


def test_long_rows_are_not_biased(cuda):
    """75,600 keys with a mean of 0.5 in V: an accumulator that truncates would show a bias of some percent."""
    for row in ("fp8 x1 all all all", "bf16 - all all all"):
        plan, (q, k, _, _) = scene(cuda, LONG, row, 128, heads=1)
        generator = torch.Generator(cuda).manual_seed(3)
        v = (0.5 + 0.25 * torch.randn(q.shape, generator=generator, device=cuda)).bfloat16()
        for name in runnable(cuda, plan):
            ours = fps_attention(q, k, v, plan, backend=name).double().mean()
            # Every row is a mean of V over all keys, nearly the same; rounding to FP8 has no sign.
            exact = torch.nn.functional.scaled_dot_product_attention(
                *(x[:, :, 0][:, None].float() for x in (q[:, :512], k, v))
            )
            bias = float(ours / exact.double().mean() - 1)
            assert abs(bias) <= (5e-4 if not STANDIN else 2e-2), f"{name}: {bias:.3%}"
    clear_plans()


def test_a_skipped_head_is_zero(cuda):
    import dataclasses

    plan, (q, k, v, _) = scene(cuda, GRIDS["480p-33f"], "fp8 x1 all 50% 40%")
    lists = dataclasses.replace(plan.lists, count=torch.zeros_like(plan.lists.count))
    empty = dataclasses.replace(plan, lists=lists)
    for name in runnable(cuda, plan):
        assert not fps_attention(q, k, v, empty, backend=name).any()
