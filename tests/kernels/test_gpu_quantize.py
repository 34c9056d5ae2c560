"""The Triton quantizer on a CUDA card against the plain-torch one on the same card: the same bits, given K's mean.

With ``GPU_STANDIN=1 TRITON_INTERPRET=1`` the same tests run on small grids in Triton's interpreter.
"""

from __future__ import annotations

import os

import pytest
import torch
from fpsattention.kernels import triton_runtime
from fpsattention.kernels.attention.spec import Spec
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.plan import Layout
from fpsattention.kernels.quantize import fp8, triton_quantize

pytestmark = pytest.mark.gpu

STANDIN = os.environ.get("GPU_STANDIN") == "1"
GRIDS = {"480p": TokenGrid(21, 30, 52), "ragged": TokenGrid(5, 17, 23, 48, 13)}
HEADS = 3
if STANDIN:
    from fpsattention.kernels.bench import standin

    if reason := standin.prepare():
        pytest.skip(reason, allow_module_level=True)
    GRIDS = {"ragged": TokenGrid(2, 5, 6, 3, 2)}
    HEADS = 1


def spec_of(device, grid: TokenGrid, granularity: str, form: str, slots: int) -> Spec:
    if form == "e4m3" and triton_runtime.capability(device) < 89:
        pytest.skip("this card has no FP8")
    cube_size = int(granularity[1:]) if granularity.startswith("x") else 1
    layout = Layout.of(choose_tiling(grid, slots), cube_size, device)
    no_lists = [torch.empty(0, dtype=torch.int32, device=device)] * 5
    return Spec(
        layout.index, layout.live, layout.cube, *no_lists,
        layout.cubes, layout.uniform, layout.last, granularity, True, form,
    )  # fmt: skip


def tensors(device, tokens: int, dim: int, dtype=torch.bfloat16):
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(1, tokens, HEADS, dim, generator=generator, device=device) for _ in range(3))
    k += 2 * torch.randn(1, 1, HEADS, dim, generator=generator, device=device)
    return [x.to(dtype) for x in (q, k, v)]


def codes(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("form", ["e4m3", "int8"])
@pytest.mark.parametrize("granularity", ["token", "x1", "x2", "x4", "x8"])
def test_codes_are_those_of_the_reference(cuda, granularity, form, grid, slots, monkeypatch):
    spec = spec_of(cuda, grid, granularity, form, slots)
    for dim, dtype in ((128, torch.bfloat16), (64, torch.float16), (128, torch.float32)):
        q, k, v = tensors(cuda, grid.tokens, dim, dtype)
        ours = triton_quantize.quantize(q, k, v, spec)
        mean = triton_quantize._statistics(q, k, v, spec).mean.view(1, HEADS, 1, 1, dim)
        exact = k.double().mean(1)[:, :, None, None]
        assert (mean - exact).abs().max() <= 1e-6 * k.abs().max()
        monkeypatch.setattr(fp8, "token_mean", lambda _, mean=mean: mean)
        width = spec.index.shape[1]
        index = torch.nn.functional.pad(spec.index, (0, triton_quantize.slots_of(width, form) - width), value=-1)
        wanted = fp8.quantize_tiles(
            q, k, v, index,
            granularity=granularity, cube=spec.cube, cubes=spec.cubes, smooth_k=True, form=form,
        )  # fmt: skip
        for name, other in zip(("q", "k", "v", "q_scale", "k_scale", "v_scale"), wanted):
            mine = getattr(ours, name)
            assert (mine is None) == (other is None), name
            assert mine is None or torch.equal(codes(mine), codes(other)), (name, dim, dtype)


def test_two_calls_give_the_same_bits(cuda):
    grid = next(iter(GRIDS.values()))
    q, k, v = tensors(cuda, grid.tokens, 128)
    for granularity in ("token", "x2"):
        spec = spec_of(cuda, grid, granularity, "int8" if triton_runtime.capability(cuda) < 89 else "e4m3", 64)
        first, second = (triton_quantize.quantize(q, k, v, spec) for _ in range(2))
        for a, b in zip(vars(first).values(), vars(second).values()):
            assert (a is None and b is None) or torch.equal(codes(a), codes(b))


@pytest.mark.skipif(STANDIN, reason="takes 20 GB")
def test_codes_beyond_31_bits(cuda):
    """Six samples of 720p with 40 heads, all the same one: each of its outputs must be the first one's."""
    grid = TokenGrid(21, 45, 80)
    spec = spec_of(cuda, grid, "x1", "int8" if triton_runtime.capability(cuda) < 89 else "e4m3", 64)
    generator = torch.Generator(cuda).manual_seed(0)
    shape = (1, grid.tokens, 40, 128)
    q, k, v = (torch.randn(shape, generator=generator, device=cuda, dtype=torch.bfloat16) for _ in range(3))
    ours = triton_quantize.quantize(*(x.expand(6, *shape[1:]) for x in (q, k, v)), spec)
    assert ours.q.numel() > 2**31
    for x in vars(ours).values():
        assert x is None or all(torch.equal(codes(x[i]), codes(x[0])) for i in range(1, 6))
    single = triton_quantize.quantize(q, k, v, spec)
    for a, b in zip(vars(ours).values(), vars(single).values()):
        # Another number of programs sums K's mean up in another order: hardly a code changes.
        assert a is None or (codes(a[0]) != codes(b[0])).float().mean() < 1e-2
