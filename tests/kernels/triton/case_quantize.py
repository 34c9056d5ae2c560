"""The Triton quantizer in the interpreter, against the plain-torch one and float64 loops. Run by test_interpreted.py.

Codes and scales are the torch ones bit for bit, given K's mean. The mean itself is another order of summation: within
1e-6 of the largest |k|, in float32, of the exact one (1e-7 seen).
"""

from __future__ import annotations

import math

import interpreter
import pytest
import torch

interpreter.correct()

from fpsattention.kernels import triton_runtime  # noqa: E402
from fpsattention.kernels.attention.spec import Spec  # noqa: E402
from fpsattention.kernels.grid import TokenGrid, choose_tiling, run_tiling  # noqa: E402
from fpsattention.kernels.plan import Layout  # noqa: E402
from fpsattention.kernels.quantize import fp8, triton_quantize  # noqa: E402
from fpsattention.kernels.quantize.traffic import traffic  # noqa: E402
from fpsattention.kernels.quantize.triton_quantize import V_ORDER, quantize, slots_of, tiles_for_backward  # noqa: E402

GRANULARITIES = ("token", "x1", "x2", "x4", "x8")
FORMS = ("e4m3", "int8")
RAGGED = TokenGrid(4, 7, 9, prefix=5, suffix=13)


def spec_of(layout: Layout, granularity: str | None = "x1", form: str = "e4m3", smooth_k: bool = True) -> Spec:
    """Return the spec of a layout; the lists do not matter here."""
    no_lists = [torch.empty(0, dtype=torch.int32, device=layout.index.device)] * 5
    return Spec(
        layout.index, layout.live, layout.cube, *no_lists,
        layout.cubes, layout.uniform, layout.last, granularity, smooth_k, form,
    )  # fmt: skip


def grid_spec(grid: TokenGrid, granularity: str, form: str = "e4m3", slots: int = 32, smooth_k: bool = True) -> Spec:
    cube_size = int(granularity[1:]) if granularity.startswith("x") else 1
    return spec_of(Layout.of(choose_tiling(grid, slots), cube_size, "cpu"), granularity, form, smooth_k)


def tiles_spec(live: list[int], granularity: str = "x1", form: str = "e4m3", smooth_k: bool = True) -> Spec:
    """Return a spec of tiles with ``live`` tokens each, every one a cube; which token is where is random."""
    order = torch.randperm(sum(live), generator=torch.Generator().manual_seed(0)).split(live)
    index = torch.full((len(live), max(live)), -1)
    for tile, tokens in enumerate(order):
        index[tile, : len(tokens)] = tokens
    count = torch.tensor(live, dtype=torch.int32)
    return spec_of(Layout(index, count, torch.arange(len(live)), len(live), 0, live[-1]), granularity, form, smooth_k)


def tensors(tokens: int, batch: int = 1, heads: int = 2, dim: int = 64, dtype=torch.bfloat16, seed: int = 1):
    """Return q, k, v ``(B, S, H, D)`` from N(0, 1), K around a mean per channel of its own."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, tokens, heads, dim, generator=generator) for _ in range(3))
    k += 2 * torch.randn(1, 1, heads, dim, generator=generator)
    return [x.to(dtype) for x in (q, k, v)]


def padded(spec: Spec) -> torch.Tensor:
    """Return the index with every reserved slot."""
    width = spec.index.shape[1]
    return torch.nn.functional.pad(spec.index, (0, slots_of(width, spec.format) - width), value=-1)


def expected(q, k, v, spec: Spec, monkeypatch) -> tuple:
    """Return what ``quantize_tiles`` gives with K's mean as the kernel sums it up, which is checked first."""
    if spec.smooth_k:
        mean = triton_quantize._statistics(q, k, v, spec).mean.view(q.shape[0], q.shape[2], 1, 1, q.shape[3])
        exact = k.double().mean(1)[:, :, None, None, :]
        close = (mean - exact).abs() <= 1e-6 * k.float().nan_to_num(0.0, 0.0, 0.0).abs().amax()
        assert (close | (~exact.isfinite() & (mean == 0))).all()
        monkeypatch.setattr(fp8, "token_mean", lambda _: mean)
    return fp8.quantize_tiles(
        q, k, v, padded(spec),
        granularity=spec.granularity, cube=spec.cube, cubes=spec.cubes, smooth_k=spec.smooth_k, form=spec.format,
    )  # fmt: skip


def bits(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor's numbers as integers, every NaN the same."""
    if x.dtype == torch.float8_e4m3fn:
        codes = x.view(torch.uint8)
        return torch.where((codes & 0x7F) == 0x7F, 0x7F, codes)
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def same(actual: triton_quantize.Quantized, wanted: tuple) -> None:
    names = ("q", "k", "v", "q_scale", "k_scale", "v_scale")
    for name, other in zip(names, wanted):
        mine = getattr(actual, name)
        assert (mine is None) == (other is None), name
        if mine is not None:
            assert mine.dtype == other.dtype and mine.shape == other.shape and mine.is_contiguous(), name
            assert torch.equal(bits(mine), bits(other)), name


def check(q, k, v, spec: Spec, monkeypatch) -> triton_quantize.Quantized:
    actual = quantize(q, k, v, spec)
    same(actual, expected(q, k, v, spec, monkeypatch))
    return actual


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_granularity_is_the_reference(granularity, form, monkeypatch):
    spec = grid_spec(RAGGED, granularity, form, slots=32)
    check(*tensors(RAGGED.tokens), spec, monkeypatch)


def test_cubes_at_the_border_are_smaller(monkeypatch):
    grid = TokenGrid(3, 10, 6)  # tiles of 16: an odd number of them along an axis
    spec = grid_spec(grid, "x2", slots=16)
    sizes = torch.bincount(spec.cube)
    assert sizes.min() < sizes.max() and spec.cubes > 1
    q, k, v = tensors(grid.tokens, heads=1)
    q[:, spec.index[0, 0]] *= 30  # scales of cubes differ
    actual = check(q, k, v, spec, monkeypatch)
    for cube in range(spec.cubes):
        assert len(actual.q_scale[0, 0, spec.cube == cube].unique()) == 1
    assert len(actual.q_scale.unique()) == spec.cubes


@pytest.mark.parametrize("form", FORMS)
def test_every_width_of_a_tile(form, monkeypatch):
    for width in range(1, 17) if form == "int8" else (1, 2, 15, 16, 17, 18, 23, 24, 31, 32, 33):
        q, k, v = tensors(2 * width + 1, heads=1)
        check(q, k, v, tiles_spec([width, 1, width], "token" if width % 2 else "x1", form), monkeypatch)


@pytest.mark.parametrize("extra", [0, 1, 48, 257])
def test_extra_tokens(extra, monkeypatch):
    for grid in (TokenGrid(2, 4, 6, prefix=extra), TokenGrid(2, 4, 6, suffix=extra)):
        spec = grid_spec(grid, "x2", slots=48)
        check(*tensors(grid.tokens, heads=1), spec, monkeypatch)


@pytest.mark.parametrize("granularity", ["token", "x1", "x2"])
def test_runs_whose_last_is_short(granularity, monkeypatch):
    grid = TokenGrid(2, 7, 9)
    layout = Layout.of(run_tiling(grid, 64), 2 if granularity == "x2" else 1, "cpu")
    assert layout.uniform == 64 and layout.last == 126 - 64
    check(*tensors(grid.tokens, dim=128), spec_of(layout, granularity), monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
def test_types_head_dimensions_and_batches(dtype, dim, monkeypatch):
    spec = tiles_spec([30, 32, 1], "x2")
    check(*tensors(63, batch=2, dim=dim, dtype=dtype), spec, monkeypatch)
    check(*tensors(63, batch=2, heads=1, dim=dim, dtype=dtype), tiles_spec([30, 32, 1], "token"), monkeypatch)


@pytest.mark.parametrize("granularity", ["token", "x1", "x2"])
@pytest.mark.parametrize("form", FORMS)
def test_without_smoothing_nothing_depends_on_a_sum(granularity, form, monkeypatch):
    spec = tiles_spec([30, 32, 1, 17], granularity, form, smooth_k=False)
    q, k, v = tensors(80)
    first = check(q, k, v, spec, monkeypatch)
    monkeypatch.setattr(triton_quantize, "_STATISTICS_PROGRAMS", 3)
    again = quantize(q, k, v, spec)
    assert all(
        torch.equal(bits(a), bits(b)) for a, b in zip(vars(first).values(), vars(again).values()) if a is not None
    )


@pytest.mark.parametrize("granularity", ["x1", "x2"])
@pytest.mark.parametrize("programs", [1, 5])
def test_programs_that_take_several_blocks(granularity, programs, monkeypatch):
    monkeypatch.setattr(triton_quantize, "_STATISTICS_PROGRAMS", programs)
    monkeypatch.setattr(triton_quantize, "_FINISH_PARTS", 2)  # and a reduction in several steps
    monkeypatch.setattr(triton_quantize, "_FINISH_TILES", 4)
    spec = tiles_spec([32, 30, 32, 1, 32, 20, 32], granularity)
    q, k, v = tensors(179)
    first = check(q, k, v, spec, monkeypatch)
    second = quantize(q, k, v, spec)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(vars(first).values(), vars(second).values()))


def spacing(codes: torch.Tensor, form: str) -> torch.Tensor:
    """Return the distance between neighbors around e4m3 or int8 ``codes``."""
    if form == "int8":
        return torch.ones_like(codes)
    return torch.exp2(codes.abs().clamp(min=2.0**-6).log2().floor() - 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", ["token", "x1", "x2"])
def test_against_loops_in_float64(granularity, form):
    """From the definitions alone: scales are the largest over 448 or 127, codes the nearest, dead rows zero."""
    grid = TokenGrid(2, 5, 9, suffix=3)
    spec = grid_spec(grid, granularity, form, slots=32)
    q, k, v = tensors(grid.tokens, heads=1)
    actual = quantize(q, k, v, spec)
    slots, largest = slots_of(spec.index.shape[1], form), fp8.LARGEST[form]
    groups: dict[tuple, list[int]] = {}
    for tile, row in enumerate(spec.index.tolist()):
        for slot, token in enumerate(row):
            if token >= 0:
                group = (tile, slot) if granularity == "token" else (int(spec.cube[tile]),)
                groups.setdefault(group, []).append(token)
    smooth = (k.double() - k.double().mean(1, keepdim=True))[0, :, 0]
    for x, codes, scales in ((q[0, :, 0].double(), actual.q, actual.q_scale), (smooth, actual.k, actual.k_scale)):
        codes, scales = codes[0, 0].double().view(len(spec.index), slots, -1), scales[0, 0].double()
        for tile, row in enumerate(spec.index.tolist()):
            for slot in range(slots):
                token = row[slot] if slot < len(row) else -1
                if token < 0:
                    assert (codes[tile, slot] == 0).all()
                    continue
                group = (tile, slot) if granularity == "token" else (int(spec.cube[tile]),)
                scale = max(float(x[t].abs().max()) for t in groups[group]) / largest
                stored = float(scales[tile * slots + slot] if granularity == "token" else scales[tile])
                assert math.isclose(stored, scale, rel_tol=1e-5)
                quotient = x[token] / stored
                assert ((codes[tile, slot] - quotient).abs() <= 0.5001 * spacing(quotient, form)).all()
    if form == "int8":
        return
    values = torch.zeros(len(spec.index) * slots, 64, dtype=torch.float64)
    for tile, row in enumerate(spec.index.tolist()):
        for slot, token in enumerate(row):
            if token >= 0:
                values[tile * slots + slot] = v[0, token, 0].double()
    scale = v[0, :, 0].double().abs().amax(0) / 448
    assert torch.allclose(actual.v_scale[0, 0].double(), scale, rtol=1e-6)
    for column in range(len(values)):
        slot = column - column % 16 + V_ORDER[column % 16]
        quotient = values[slot] / scale
        codes = actual.v[0, 0, :, column].double()
        assert ((codes - quotient).abs() <= 0.5001 * spacing(quotient, form)).all()


def test_the_order_of_transposed_values():
    assert sorted(V_ORDER) == list(range(16))
    for half in range(2):
        for pair in range(4):
            for low in range(2):
                assert V_ORDER[4 * pair + 2 * half + low] == 8 * half + 2 * pair + low


def test_an_outlier_channel_and_a_biased_key(monkeypatch):
    spec = tiles_spec([30, 32, 17], "x1")
    q, k, v = tensors(79)
    plain = quantize(q, k, v, spec)
    v[..., 17] *= 20
    k[..., 3] += 5
    actual = check(q, k, v, spec, monkeypatch)
    rest = [channel for channel in range(64) if channel != 17]
    assert torch.equal(bits(actual.v[:, :, rest]), bits(plain.v[:, :, rest]))
    # The mean took the bias away: the scales hardly notice it.
    assert (actual.k_scale / plain.k_scale).sub(1).abs().max() < 0.02


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("granularity", ["token", "x1", "x2"])
@pytest.mark.parametrize("form", FORMS)
def test_broken_numbers_stay_where_they_are(broken, granularity, form, monkeypatch):
    grid = TokenGrid(2, 8, 8)
    spec = grid_spec(grid, granularity, form, slots=16)
    clean = tensors(grid.tokens, heads=1)
    first = quantize(*clean, spec)
    token = int(spec.index[3, 2])
    q, k, v = (x.clone() for x in clean)
    for x in (q, k, v):
        x[0, token, 0, 5] = broken
    actual = quantize(q, k, v, spec)
    slots = slots_of(spec.index.shape[1], form)
    row = 3 * slots + 2
    assert all(getattr(actual, name).isfinite().all() for name in ("q_scale", "k_scale"))
    # Other cubes of q do not change at all.
    others = (spec.cube != spec.cube[3]).repeat_interleave(slots)
    assert torch.equal(bits(actual.q[:, :, others]), bits(first.q[:, :, others]))
    if form == "e4m3":
        column = row - row % 16 + V_ORDER.index(row % 16)
        for codes, places in ((actual.q, (0, 0, row, 5)), (actual.k, (0, 0, row, 5)), (actual.v, (0, 0, 5, column))):
            value = codes.float()[places]
            assert value.isnan() if math.isnan(broken) else value == math.copysign(448, broken)
            assert codes.float().isnan().sum() == int(math.isnan(broken))
        same(actual, expected(q, k, v, spec, monkeypatch))
    else:
        assert actual.q[0, 0, row, 5] == (0 if math.isnan(broken) else math.copysign(127, broken))
        wanted = expected(q, k, v, spec, monkeypatch)
        wanted[0][0, 0, row, 5], wanted[1][0, 0, row, 5] = actual.q[0, 0, row, 5], actual.k[0, 0, row, 5]
        same(actual, wanted)


def test_zeros_and_tiny_numbers(monkeypatch):
    spec = tiles_spec([30, 32, 17], "x1", smooth_k=False)
    q, k, v = tensors(79, dtype=torch.float32)
    q[:, spec.index[1]] = 0
    k[:, spec.index[1]] = 1e-30
    v[..., 3] = 0
    v[..., 4] *= 1e-30
    actual = check(q, k, v, spec, monkeypatch)
    assert (actual.q_scale[:, :, 1] == 1).all() and (actual.k_scale[:, :, 1] == 1).all()
    assert (actual.v_scale[..., 3] == 1).all() and actual.v[:, :, 4].float().abs().max() == 448


@pytest.mark.parametrize("granularity", GRANULARITIES[:3])
def test_nothing_depends_on_what_memory_held(granularity, monkeypatch):
    spec = tiles_spec([30, 32, 1, 17], granularity)
    q, k, v = tensors(80)
    clean = quantize(q, k, v, spec)
    backward = tiles_for_backward(q, k, v, spec, torch.float32)
    empty = torch.empty

    def poisoned(*shape, **options):
        x = empty(*shape, **options)
        x.view(torch.uint8).fill_(0x7F)  # a NaN in e4m3, 3e38 in float32 and bfloat16
        return x

    monkeypatch.setattr(torch, "empty", poisoned)
    again = quantize(q, k, v, spec)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(vars(clean).values(), vars(again).values()))
    dead = (padded(spec) < 0).flatten()
    assert not again.q.view(torch.uint8)[:, :, dead].any() and not again.k.view(torch.uint8)[:, :, dead].any()
    natural = [V_ORDER.index(i) for i in range(16)]
    v_codes = again.v.view(torch.uint8).unflatten(-1, (-1, 16))[..., natural].flatten(-2)
    assert not v_codes[..., dead].any()
    for a, b in zip(backward, tiles_for_backward(q, k, v, spec, torch.float32)):
        assert torch.equal(bits(a), bits(b)) and (a.shape[-1] != 64 or not a[:, :, dead].any())


@pytest.mark.parametrize("granularity", ["token", "x2"])
def test_strides_do_not_matter(granularity):
    spec = tiles_spec([30, 32, 1], granularity)
    q, k, v = tensors(63, batch=2, heads=2)
    wanted = quantize(q, k, v, spec)
    fused = torch.cat((q, k, v), dim=2)  # (B, S, 3H, D), as one projection gives them
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    apart = [torch.stack((x, x), dim=-1)[..., 0] for x in (q, k, v)]
    shifted = [torch.nn.functional.pad(x, (1, 2))[..., 1:-2] for x in (q, k, v)]  # no 16-byte rows
    narrow = Spec(spec.index.int(), spec.live, spec.cube.int(), *list(vars(spec).values())[3:])
    for inputs in (fused.chunk(3, dim=2), heads_first, apart, shifted):
        actual = quantize(*inputs, narrow)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(vars(wanted).values(), vars(actual).values()))


@pytest.mark.parametrize("granularity", ["x1", "x2"])
def test_offsets_beyond_31_bits(granularity):
    """Rows 2**26 numbers apart in memory that is reserved but, apart from them, never touched."""
    spec = tiles_spec([17, 18], granularity)
    q, k, v = tensors(35, heads=1)
    stride = 2**26
    try:
        memory = torch.empty(35 * stride, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("this machine does not reserve 4.4 GiB of untouched memory")
    inputs = []
    for i, x in enumerate((q, k, v)):
        far = memory.as_strided(x.shape, (35 * stride, stride, 64, 1), i * 64)
        far.copy_(x)
        inputs.append(far)
    wanted, actual = quantize(q, k, v, spec), quantize(*inputs, spec)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(vars(wanted).values(), vars(actual).values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("granularity", ["token", "x1", "x2"])
@pytest.mark.parametrize("form", FORMS)
def test_tiles_for_backward_are_the_values_of_the_codes(dtype, granularity, form):
    spec = tiles_spec([30, 32, 1, 17], granularity, form)
    q, k, v = tensors(80)
    codes = quantize(q, k, v, spec)
    qc, kc, vc, q_scale, k_scale = tiles_for_backward(q, k, v, spec, dtype)
    assert qc.dtype == kc.dtype == vc.dtype == dtype and vc.shape == qc.shape
    assert torch.equal(qc.float(), codes.q.float()) and torch.equal(kc.float(), codes.k.float())
    assert torch.equal(q_scale, codes.q_scale) and torch.equal(k_scale, codes.k_scale)
    tiles = fp8.to_tiles(v, padded(spec))
    if form == "e4m3":
        tiles = fp8.fake_quantize_(tiles, fp8.channel_scales(tiles))
    assert torch.equal(vc, tiles.flatten(2, 3).to(dtype))


def test_tiles_for_backward_without_rounding_are_copies():
    spec = spec_of(tiles_spec([30, 32, 1, 17]), None, "none")
    inputs = tensors(80, batch=2, dim=128)
    *copies, q_scale, k_scale = tiles_for_backward(*inputs, spec, torch.bfloat16)
    for x, copy in zip(inputs, copies):
        assert torch.equal(copy, fp8.to_tiles(x, padded(spec)).flatten(2, 3).bfloat16())
    assert q_scale.shape == k_scale.shape == (2, 2, 4) and (q_scale == 1).all() and (k_scale == 1).all()


def launches(monkeypatch, call) -> list[tuple]:
    """Return the kernels' names and tensors of every launch of ``call``, which runs nothing."""
    noted = []

    def launch(kernel, grid, tensor, *args, **options):
        noted.append((kernel.fn.__name__, [x for x in args if isinstance(x, torch.Tensor)]))

    monkeypatch.setattr(triton_runtime, "launch", launch)
    call()
    return noted


@pytest.mark.parametrize(
    ("granularity", "form", "smooth_k", "names"),
    [
        ("x1", "int8", False, []),
        ("token", "int8", True, ["channel_statistics", "finish_statistics"]),
        ("x1", "e4m3", False, ["channel_statistics", "finish_statistics"]),
        ("x2", "int8", False, ["query_maxima", "key_extremes", "finish_statistics"]),
        ("x2", "e4m3", True, ["query_maxima", "key_extremes", "channel_statistics", "finish_statistics"]),
    ],
)
def test_only_needed_statistics_are_taken(granularity, form, smooth_k, names, monkeypatch):
    spec = tiles_spec([30, 32, 17], granularity, form, smooth_k)
    q, k, v = tensors(79)
    ran = launches(monkeypatch, lambda: quantize(q, k, v, spec))
    assert [name for name, _ in ran] == [*names, "write_tiles"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_account_of_memory_is_that_of_the_launches(granularity, form, monkeypatch):
    """720p, 14B, without data: whatever a launch was given and the caller did not bring was allocated for it."""
    grid = TokenGrid(21, 45, 80)
    layout = Layout.of(choose_tiling(grid, 64), int(granularity[1:]) if granularity != "token" else 1, "meta")
    spec = spec_of(layout, granularity, form)
    q, k, v = (torch.empty(1, grid.tokens, 40, 128, dtype=torch.bfloat16, device="meta") for _ in range(3))
    given = [q, k, v, spec.index, spec.cube]
    ran = launches(monkeypatch, lambda: quantize(q, k, v, spec))
    allocated = {id(x): x for _, args in ran for x in args if not any(x is other for other in given)}
    account = traffic(q, spec)
    assert account.held == sum(x.numel() * x.element_size() for x in allocated.values())
    inputs = 3 * q.numel() * q.element_size()
    assert account.held < 0.55 * inputs
    passes = {"token": 1, "x1": 1}.get(granularity, 2) + (form == "e4m3")  # of one tensor each, before the codes
    written = (3 if form == "e4m3" else 2) * 1260 * 64 * 40 * 128
    assert account.written == pytest.approx(written, rel=0.04)
    read = (passes + (3 if form == "e4m3" else 2)) * inputs / 3
    assert account.read == pytest.approx(read, rel=0.02) and account.moved == account.read + account.written


def test_another_format_is_one_sentence():
    with pytest.raises(ValueError, match="e4m3 or int8 codes, got the format 'none'"):
        quantize(*tensors(79), spec_of(tiles_spec([30, 32, 17]), None, "none"))
