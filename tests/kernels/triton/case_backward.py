"""The Triton backward in the interpreter, against the plain-torch reference and autograd. Run by test_interpreted.py.

Tolerances, relative L2 of dq, dk and dv, with what these scenes gave:
* float32 products against the reference, 1e-4 (8e-7): the same rounded numbers, so only sums differ.
* bfloat16 products, what a card runs, against the reference, 1e-2 (4e-3): P, dS and the gradient have 8 bits.
* Against autograd of a straight-through oracle in float64, 5e-3 (4e-3, the reference has the same): where it divides by
  a scale, the pack multiplies by its inverse, and a code that then falls on the other side of a tie differs by 1/16.

Operands in tile order come from plain torch, which the interpreter does not slow down; one test takes the kernels'.
"""

from __future__ import annotations

import dataclasses
import math

import interpreter
import pytest
import scene
import torch

interpreter.correct()

from fpsattention.kernels import triton_runtime  # noqa: E402
from fpsattention.kernels.attention import reference, triton_backward  # noqa: E402
from fpsattention.kernels.attention.spec import Spec  # noqa: E402
from fpsattention.kernels.quantize import fp8  # noqa: E402

FP32, BF16, AUTOGRAD = 1e-4, 1e-2, 5e-3
NUMERICS = [("none", None), *((form, g) for form in ("e4m3", "int8") for g in ("token", "x1", "x2"))]
quantizer = triton_backward.tiles_for_backward


def plain_tiles(q, k, v, spec, dtype):
    """Return what ``tiles_for_backward`` does, in plain torch."""
    width = spec.index.shape[1]
    slots = max(32 if spec.format == "e4m3" else 16, 1 << (width - 1).bit_length())
    index = torch.nn.functional.pad(spec.index.long(), (0, slots - width), value=-1)
    qt, kt, vt = (fp8.to_tiles(x, index) for x in (q, k, v))
    scales = [torch.ones(*qt.shape[:3])] * 2
    if spec.format != "none":
        if spec.smooth_k:
            kt = (kt - fp8.token_mean(k)).masked_fill_((index < 0)[None, None, :, :, None], 0.0)
        groups = [fp8.group_scales(x, spec.granularity, spec.cube, spec.cubes, spec.format) for x in (qt, kt)]
        qt, kt = (fp8.true_quantize(x, s, spec.format).float() for x, s in zip((qt, kt), groups))
        scales = [s.reshape(*s.shape[:2], -1) for s in groups]
    if spec.format == "e4m3":
        fp8.fake_quantize_(vt, fp8.channel_scales(vt))
    return *(x.flatten(2, 3).to(dtype) for x in (qt, kt, vt)), *scales


@pytest.fixture(autouse=True)
def _plain_tiles(monkeypatch):
    monkeypatch.setattr(triton_backward, "tiles_for_backward", plain_tiles)


def transposed(patterns):
    """Return the patterns of who sees a key tile."""
    tiles = len(patterns[0])
    return [[[i for i in range(tiles) if j in rows[i]] for j in range(tiles)] for rows in patterns]


def make(live, patterns, heads, form="none", granularity=None, smooth=True):
    """Return a spec of tiles with ``live`` tokens in random order; ``heads (1 or B, H)`` name their patterns."""
    lay = scene.layout(live, max(live))
    forth, back = scene.lists(patterns, heads), scene.lists(transposed(patterns), heads)
    cube = torch.arange(len(live)) // (2 if granularity == "x2" else 1)
    return Spec(
        lay.index.long(), lay.live, cube, forth.ids, forth.count, forth.pattern_of_head, back.ids, back.count,
        int(cube[-1]) + 1, 0, live[-1], granularity, smooth, form,
    )  # fmt: skip


def some(tiles, density, seed=0):
    """Return a pattern in which every tile sees a random share of the tiles, at least itself."""
    chosen = torch.rand(tiles, tiles, generator=torch.Generator().manual_seed(seed)) < density
    chosen |= torch.eye(tiles, dtype=torch.bool)
    return [row.nonzero().flatten().tolist() for row in chosen]


def inputs(spec, batch=1, heads=1, dim=64, dtype=torch.float32, std=1.0):
    """Return q, k, v and a gradient, bfloat16 numbers; K has a bias and V a channel far larger than the others."""
    tokens = int(spec.live.sum())
    q, k, v = scene.tensors(batch, tokens, heads, dim, torch.float32)
    grad = scene.tensors(batch, tokens, heads, dim, torch.float32, seed=5)[0]
    bias = torch.randn(heads, dim, generator=torch.Generator().manual_seed(7))
    k, v = k + bias, v * torch.where(torch.arange(dim) == 3, 20.0, 1.0)
    return [x.bfloat16().to(dtype) for x in (q * std, k, v, grad)]


def both(spec, q, k, v, grad, **options):
    """Return the kernels' and the reference's gradients, from the same forward."""
    forward = reference.forward(q, k, v, spec)
    ours = triton_backward.backward(grad, q, k, v, *forward, spec, **options)
    return ours, reference.backward(grad, q, k, v, *forward, spec)


def assert_close(ours, expected, bound):
    for name, a, b in zip(("dq", "dk", "dv"), ours, expected):
        assert a.shape == b.shape and a.dtype == b.dtype and a.is_contiguous()
        assert scene.error(a, b) < bound, (name, scene.error(a, b))


@pytest.mark.parametrize("density", [1.0, 0.3, 0.1])
@pytest.mark.parametrize(("form", "granularity"), NUMERICS)
def test_it_is_the_reference(form, granularity, density):
    spec = make([30, 32, 17, 30, 7], [some(5, density)], [[0]], form, granularity)
    x = inputs(spec)
    ours, expected = both(spec, *x, dtype=torch.float32)
    assert_close(ours, expected, FP32)
    ours, _ = both(spec, *x)
    assert_close(ours, expected, BF16)


def straight_through_attention(q, k, v, spec, form, granularity):
    """Return attention in float64 whose rounding passes gradients straight through, from the definitions."""
    seen = torch.zeros(len(spec.live), len(spec.live), dtype=torch.bool)
    for i, n in enumerate(spec.count[0].tolist()):
        seen[i, spec.ids[0, i, :n].long()] = True
    tile = torch.empty(q.shape[1], dtype=torch.long)
    for i, tokens in enumerate(spec.index):
        tile[tokens[tokens >= 0]] = i
    group = torch.arange(q.shape[1]) if granularity == "token" else spec.cube[tile]

    def rounded(x, scale):
        codes = (x.detach().float() / scale).clamp(-448, 448)
        codes = codes.round() if form == "int8" else codes.to(torch.float8_e4m3fn).float()
        return x + ((codes * scale).double() - x).detach()

    def scales(x):
        largest = x.detach().float().abs().amax(-1)
        return torch.stack([largest[:, group == g].amax(1) for g in group], 1)[..., None]

    if form != "none":
        k = k - k.detach().float().mean(1, keepdim=True)
        top = 127.0 if form == "int8" else 448.0
        q, k = (rounded(x, scales(x) / top) for x in (q, k))
    if form == "e4m3":
        v = rounded(v, v.detach().float().abs().amax(1, keepdim=True) / 448.0)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(2, 3)) * (math.log2(math.e) / math.sqrt(q.shape[-1]))
    scores = scores.masked_fill(~seen[tile][:, tile], -math.inf)
    weights = torch.exp2(scores - scores.detach().amax(-1, keepdim=True).ceil() + 8)
    if form == "e4m3":
        weights = rounded(weights, torch.ones(()))
    return (weights @ v / weights.sum(-1, keepdim=True)).transpose(1, 2)


@pytest.mark.parametrize(("form", "granularity"), [("none", None), ("e4m3", "token"), ("e4m3", "x2"), ("int8", "x1")])
def test_it_is_the_gradient_that_autograd_finds(form, granularity):
    spec = make([30, 32, 17, 9], [some(4, 0.5)], [[0, 0]], form, granularity)
    q, k, v, grad = inputs(spec, heads=2)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    out = straight_through_attention(*leaves, spec, form, granularity)
    expected = [x.float() for x in torch.autograd.grad(out, leaves, grad.double())]
    assert_close(both(spec, q, k, v, grad, dtype=torch.float32)[0], expected, AUTOGRAD)
    assert_close(both(spec, q, k, v, grad)[0], expected, BF16)


@pytest.mark.parametrize("capability", [80, 89, 100, 120])
@pytest.mark.parametrize("slots", [64, 128])
def test_every_kind_of_card(monkeypatch, capability, slots):
    """Other blocks and other loads; 128 rows are one block on some cards and two on others."""
    monkeypatch.setattr(triton_runtime, "capability", lambda device: capability)
    form = "int8" if capability < 89 else "e4m3"
    spec = make([slots - 4, slots, 5], [[[0, 1, 2], [1], [0, 2]]], [[0]], form, "x1")
    assert_close(*both(spec, *inputs(spec, dim=128)), BF16)


@pytest.mark.parametrize("form", ["none", "e4m3"])
def test_samples_and_heads_follow_their_own_patterns(form):
    empty = [[], [], [], []]
    partly = [[0, 3], [], [1], [1, 0]]  # tile 1 sees nothing, nobody sees tile 2
    spec = make([64, 1, 30, 17], [scene.full(4), partly, empty], [[0, 1, 2], [1, 2, 0]], form, "x1")
    x = inputs(spec, batch=2, heads=3, dim=128)
    ours, expected = both(spec, *x)
    assert_close(ours, expected, BF16)
    rows = [t[t >= 0] for t in spec.index]
    for sample, head in ((0, 2), (1, 1)):
        assert all((g[sample, :, head] == 0).all() for g in ours)
    for sample, head in ((0, 1), (1, 0)):
        assert (ours[0][sample, rows[1], head] == 0).all()
        assert all((g[sample, rows[2], head] == 0).all() for g in ours[1:])


@pytest.mark.parametrize("extra", [0, 1, 48, 257])
def test_extra_tokens_around_a_video(extra):
    """Tiles of their own, which see all and are seen by all."""
    front = [64] * (extra // 64) + ([extra % 64] if extra % 64 else [])
    live = [*front, 60, 60, 60, *([13] if extra else [])]
    video = range(len(front), len(front) + 3)
    pattern = [
        [j for j in range(len(live)) if i not in video or j not in video or abs(i - j) < 2] for i in range(len(live))
    ]
    spec = make(live, [pattern], [[0]], "e4m3", "x1")
    assert_close(*both(spec, *inputs(spec)), BF16)


@pytest.mark.parametrize("last", range(1, 17))
def test_every_live_count(last):
    spec = make([16, last, 16], [scene.full(3)], [[0]])
    ours, expected = both(spec, *inputs(spec), dtype=torch.float32 if last % 2 else None)
    assert_close(ours, expected, FP32 if last % 2 else BF16)


@pytest.mark.parametrize(("form", "granularity"), [("none", None), ("e4m3", "token"), ("int8", "x1")])
def test_large_logits_stay_finite_and_right(form, granularity):
    spec = make([60, 33, 60], [scene.full(3)], [[0]], form, granularity)
    x = inputs(spec, std=40.0)
    scores = torch.einsum("bshd,bthd->bhst", x[0], x[1]) / 8
    assert scores.max() > 200 and scores.min() < -200
    ours, expected = both(spec, *x, dtype=torch.float32)
    assert_close(ours, expected, FP32)
    # Rows that are nearly one-hot: what is left of P (g V^T - delta) is a difference of nearly equal 8-bit numbers.
    ours, _ = both(spec, *x)
    assert all(g.isfinite().all() and g.norm() < 1.1 * e.norm() for g, e in zip(ours, expected))


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_dead_keys_do_not_overflow(offset):
    """All scores of a row lie far from zero, which is the score of a dead key."""
    spec = make([60, 5, 33], [scene.full(3)], [[0]])
    q, k, v, grad = inputs(spec)
    k, q = k * 0.1 + 1.0, q * 0.1 + offset * math.log(2) / 8
    # Scores of this size are off by 1e-4 in float32, whoever adds them up.
    assert_close(*both(spec, q, k, v, grad, dtype=torch.float32), 10 * FP32)
    assert all(g.isfinite().all() for g in both(spec, q, k, v, grad)[0])


def test_strides_do_not_matter():
    spec = make([30, 32, 17], [some(3, 0.5)], [[0, 0]], "e4m3", "x1")
    q, k, v, grad = inputs(spec, batch=2, heads=2, dtype=torch.bfloat16)
    forward = reference.forward(q, k, v, spec)
    expected = triton_backward.backward(grad, q, k, v, *forward, spec)
    fused = torch.stack([q, k, v], dim=3).unbind(3)
    heads_first = grad.transpose(1, 2).contiguous().transpose(1, 2)
    ours = triton_backward.backward(heads_first, *fused, *forward, spec)
    apart = torch.stack((grad, grad), dim=-1)[..., 0]
    again = triton_backward.backward(apart, *fused, *forward, dataclasses.replace(spec, index=spec.index.int()))
    for a, b, c in zip(ours, again, expected):
        assert a.dtype == torch.bfloat16 and a.is_contiguous() and torch.equal(a, c) and torch.equal(b, c)
    ones = torch.ones(()).bfloat16().expand(grad.shape)  # what .sum().backward() hands over
    a = triton_backward.backward(ones, q, k, v, *forward, spec)
    b = triton_backward.backward(ones.contiguous(), q, k, v, *forward, spec)
    assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_every_element_is_written_and_runs_are_equal(monkeypatch):
    spec = make([60, 1, 33, 8], [scene.band(4, 1), [[], [0], [], [3]]], [[0, 1]], "e4m3", "token")
    x = inputs(spec, heads=2)
    first, expected = both(spec, *x)
    assert_close(first, expected, BF16)
    forward = reference.forward(*x[:3], spec)
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, plain=plain, **o: plain(*a, **o).fill_(math.nan))
    second = triton_backward.backward(x[3], *x[:3], *forward, spec)
    assert all(torch.equal(a, b) for a, b in zip(second, first))


def test_a_bad_list_reads_nothing_outside():
    """Lists longer than their table and tiles that do not exist: as if they ended, and named the nearest."""
    spec = make([60, 64, 33], [scene.full(3)], [[0]])
    x = inputs(spec)
    forward = reference.forward(*x[:3], spec)
    bad = {"ids": spec.ids.clone(), "key_ids": spec.key_ids.clone()}
    good = {name: ids.clone() for name, ids in bad.items()}
    for name in bad:
        bad[name][0, 1], good[name][0, 1] = torch.tensor([-(2**30), 1, 2**30]), torch.tensor([0, 1, 2])
    counts = {"count": spec.count + 2**20, "key_count": spec.key_count + 2**20}
    bad["pattern_of_head"] = torch.tensor([[2**20]], dtype=torch.int32)
    ours = triton_backward.backward(x[3], *x[:3], *forward, dataclasses.replace(spec, **bad, **counts))
    expected = triton_backward.backward(x[3], *x[:3], *forward, dataclasses.replace(spec, **good))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))


@pytest.mark.parametrize("broken", ["q", "k", "v"])
def test_nan_stays_where_it_belongs(broken):
    spec = make([30, 32, 7, 20], [scene.band(4, 1)], [[0, 0]], "e4m3", "x1", smooth=False)
    q, k, v, grad = inputs(spec, heads=2)
    clean, _ = both(spec, q, k, v, grad)
    {"q": q, "k": k, "v": v}[broken][0, int(spec.index[3, 2]), 1] = math.nan
    ours, expected = both(spec, q, k, v, grad)
    for a, b, c in zip(ours, expected, clean):
        assert torch.equal(a.isnan().any(-1), b.isnan().any(-1)) and torch.equal(a[:, :, 0], c[:, :, 0])
    assert expected[0][:, :, 1].isnan().any()


def test_half_precision_keeps_its_bits():
    spec = make([60, 33], [scene.full(2)], [[0]])
    ours, _ = both(spec, *(x.half() for x in inputs(spec)))
    expected = both(spec, *(x.half().float() for x in inputs(spec)))[1]
    assert_close([x.float() for x in ours], expected, 2e-3)


def test_with_the_quantizer_kernels(monkeypatch):
    monkeypatch.setattr(triton_backward, "tiles_for_backward", quantizer)
    spec = make([30, 17], [[[0, 1], [1]]], [[0]], "e4m3", "token")
    assert_close(*both(spec, *inputs(spec)), BF16)


@pytest.mark.parametrize("change", ["one tile less", "shifted by one"])
def test_the_tolerance_notices_a_wrong_list(change):
    spec = make([60] * 4, [scene.band(4, 1)], [[0]])
    x = inputs(spec)
    forward = reference.forward(*x[:3], spec)
    expected = reference.backward(x[3], *x[:3], *forward, spec)
    wrong = [row[:-1] if change == "one tile less" else [min(3, j + 1) for j in row] for row in scene.band(4, 1)]
    lists, back = scene.lists([wrong], [[0]]), scene.lists(transposed([wrong]), [[0]])
    bad = dataclasses.replace(spec, ids=lists.ids, count=lists.count, key_ids=back.ids, key_count=back.count)
    ours = triton_backward.backward(x[3], *x[:3], *forward, bad)
    assert min(scene.error(a, b) for a, b in zip(ours, expected)) > 10 * BF16


def test_another_head_dimension_is_one_sentence():
    spec = make([16, 16], [scene.full(2)], [[0]])
    x = inputs(spec, dim=32)
    with pytest.raises(ValueError, match="head dimension 64 or 128, got 32"):
        both(spec, *x)
