"""SVG, STA's windows, key tiles by means: choice by choice against naive loops, and what a call may and may not do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fpsattention.kernels.attention import fps_attention, make_spec, reference
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import Plans, clear_plans
from fpsattention.kernels.schedule import Schedule
from fpsattention.kernels.selectors import mask_lists, sampled
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from . import online_oracle, oracle

GRIDS = {
    "even": TokenGrid(4, 6, 8),
    "ragged": TokenGrid(5, 7, 9),
    "prefix": TokenGrid(3, 6, 8, prefix=3),
    "suffix": TokenGrid(3, 5, 7, suffix=11),
    "both": TokenGrid(2, 7, 5, prefix=9, suffix=2),
    "one-frame": TokenGrid(1, 8, 12),
}
SHIPPED = {
    "480p": TokenGrid(21, 30, 52),
    "720p": TokenGrid(21, 45, 80),
    "33-frames": TokenGrid(9, 30, 52),
    "portrait": TokenGrid(21, 52, 30),
    "square": TokenGrid(21, 40, 40),
    "image": TokenGrid(1, 45, 80),
    "reference": TokenGrid(21, 30, 52, prefix=1560, suffix=77),
}
WORDS = ["svg 0.3", "sta", "topk 0.3", "topk 0.2 0.3", "cdf 0.7 -1", "cdf 0.8"]
HEADS = 3


@pytest.fixture(autouse=True)
def _no_plans_left():
    yield
    clear_plans()


def plan_of(words: str, grid: TokenGrid, *, row: str = "bf16 -", heads: int = HEADS, slots: int = 8, device="cpu"):
    return Plans(Schedule.parse(f"0 {row} {words}"), grid, heads, slots=slots).at(0.5, device=device)


def varied(grid: TokenGrid, tiling, batch: int = 2, heads: int = HEADS, dim: int = 16, seed: int = 0):
    """Return q, k, v whose tiles have a mean of their own and rows that are more or less alike."""
    random = torch.Generator().manual_seed(seed)
    tile = torch.from_numpy(tiling.tile_of_token)
    made = []
    for _ in range(2):
        base = torch.randn(batch, tiling.count, heads, dim, generator=random)
        noise = torch.rand(batch, tiling.count, heads, 1, generator=random) * 2
        x = base[:, tile] + noise[:, tile] * torch.randn(batch, grid.tokens, heads, dim, generator=random)
        made.append(1.5 * x)
    made[1] = made[1] + torch.randn(1, 1, heads, dim, generator=random)
    return *made, torch.randn(batch, grid.tokens, heads, dim, generator=random)


# --- choice by choice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("words", ["svg 0.3", "svg 0.6", "svg 0.1", "sta"])
def test_windows_are_chosen_as_by_loops(grid, words):
    plan = plan_of(words, grid)
    q, k, v = varied(grid, plan.tiling)
    if words == "sta":
        windows, first = online_oracle.sta_windows(plan.tiling), False
    else:
        windows, first = online_oracle.svg_windows(plan.tiling, float(words.split()[1]))
    masks = [online_oracle.window_mask(plan.tiling, window, first) for window in windows]
    lists = plan.lists_for(q, k, v)
    assert lists.ids.shape[0] == len(masks)
    for p, mask in enumerate(masks):
        assert (online_oracle.mask_of_lists(lists, plan.tiling.count, p) == mask).all()
    rows = plan.prepared.rows.tolist()
    expected = online_oracle.pattern_errors(q, k, v, plan.tiling, masks, rows)
    found = sampled.errors(q, k, v, plan).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-10)
    # Equal windows (a tiny grid rounds two to one) have equal errors up to rounding: the error decides, not the name.
    chosen = lists.pattern_of_head.numpy()
    assert lists.pattern_of_head.dtype == torch.int32 and chosen.shape == (2, HEADS)
    least = np.take_along_axis(expected, chosen[None].astype(int), 0)[0]
    np.testing.assert_allclose(least, expected.min(0), rtol=1e-3, atol=1e-9)
    shares = [online_oracle.pair_share(mask, plan.tiling) for mask in masks]
    assert float(lists.density) == pytest.approx(np.mean([shares[p] for p in chosen.flat]), rel=1e-6)


TOPS = [("topk", 0.15, None), ("topk", 0.4, 0.4), ("cdf", 0.5, None), ("cdf", 0.9, None), ("cdf", 0.6, 0.3)]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize(("kind", "share", "gate"), TOPS)
def test_key_tiles_are_chosen_as_by_loops(grid, kind, share, gate):
    number = gate if gate is not None else (-1 if kind == "cdf" else None)
    plan = plan_of(f"{kind} {share}" + ("" if number is None else f" {number}"), grid)
    q, k, v = varied(grid, plan.tiling)
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    lists = plan.lists_for(*inputs)
    assert lists.pattern_of_head.tolist() == [[0, 1, 2], [3, 4, 5]] and not lists.forward_only
    shares, gated = [], 0
    for b, h in itertools.product(range(2), range(HEADS)):
        mask, margin = online_oracle.top_mask(
            q[b, :, h].double().numpy(), k[b, :, h].double().numpy(), plan.tiling, kind, share, gate
        )
        assert margin > 2e-6, "the data leaves a choice open; take another seed"
        found = online_oracle.mask_of_lists(lists, plan.tiling.count, b * HEADS + h)
        assert (found == mask).all()
        shares.append(online_oracle.pair_share(mask, plan.tiling))
        inside = sorted(set(range(plan.tiling.count)) - online_oracle.outside(plan.tiling))
        gated += int(mask[:, inside].all(0).any())
    assert lists.density.dtype == torch.float32 and lists.density.dim() == 0
    assert float(lists.density) == pytest.approx(np.mean(shares), rel=1e-6)
    if gate is not None:
        assert gated and min(shares) < 1, "the gate decides nothing here"


def test_the_gates_defaults_are_the_public_ones():
    grid = GRIDS["even"]
    plain, similar = plan_of("cdf 0.6 -1", grid), plan_of("cdf 0.6 0.6", grid)
    q, k, v = varied(grid, plain.tiling)
    by_default = plan_of("cdf 0.6", grid).lists_for(q, k, v)
    assert torch.equal(by_default.count, similar.lists_for(q, k, v).count)
    assert not torch.equal(by_default.count, plain.lists_for(q, k, v).count)
    counts = plan_of("topk 0.3", grid).lists_for(q, k, v).count
    assert torch.equal(counts, plan_of("topk 0.3 -1", grid).lists_for(q, k, v).count)
    assert (counts == np.ceil(0.3 * plain.tiling.count)).all()


def test_a_gate_sees_keys_without_their_common_mean():
    """A mean that all keys share makes every tile look uniform; softmax does not see it, so the gate must not."""
    grid = GRIDS["even"]
    plan = plan_of("topk 0.2 0.5", grid)
    q, k, v = varied(grid, plan.tiling)
    before = plan.lists_for(q, k, v)
    after = plan.lists_for(q, k + 20.0, v)
    assert torch.equal(before.count, after.count) and float(before.density) > 0.3


@given(
    t=st.integers(1, 4), h=st.integers(1, 7), w=st.integers(1, 7),
    prefix=st.integers(0, 9), suffix=st.integers(0, 9),
    words=st.sampled_from(["svg 0.4", "svg 0.05", "sta", "topk 0.2", "topk 0.5 0.4", "cdf 0.3 -1", "cdf 0.95"]),
    slots=st.sampled_from([4, 8]),
)  # fmt: skip
def test_every_query_tile_sees_something_and_extra_tiles_everything(t, h, w, prefix, suffix, words, slots):
    grid = TokenGrid(t, h, w, prefix, suffix)
    plan = plan_of(words, grid, slots=slots, heads=2)
    tiling = plan.tiling
    lists = plan.lists_for(*varied(grid, tiling, heads=2, dim=8, seed=t + h + w))
    assert lists.problem(tiling.count, 2, 2) is None
    shares = []
    for p in lists.pattern_of_head.flatten().tolist():
        mask = online_oracle.mask_of_lists(lists, tiling.count, p)
        assert mask.any(1).all()
        for i in online_oracle.outside(tiling):
            assert mask[i].all() and mask[:, i].all()
        shares.append(online_oracle.pair_share(mask, tiling))
    assert float(lists.density) == pytest.approx(np.mean(shares), rel=1e-6)


# --- what the words mean ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["480p", "720p"])
def test_svg_comes_near_its_density_on_real_grids(name, density):
    made = plan_of(f"svg {density}", SHIPPED[name], slots=64).prepared
    spatial, temporal = made.density.tolist()
    # Spatial patterns go in whole tiles of frames, seven of them.
    assert abs(temporal - density) <= max(0.06 * density, 0.01) and abs(spatial - density) <= 0.075
    assert not torch.equal(*made.lists.ids)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.7])
def test_svg_takes_a_well_shaped_window_of_those_about_as_dense(density):
    plan = Plans(Schedule.parse(f"0 bf16 - svg {density}"), TokenGrid(4, 12, 14), 1, slots=8, tile=(2, 2, 2)).at(0.5)
    assert plan.tiling.pieces == (2, 6, 7)
    windows, first = online_oracle.svg_windows(plan.tiling, density)
    assert density != 0.5 or windows[1] == (2, 4, 5)  # 3 x 7 would be exactly half
    for p, window in enumerate(windows):
        expected = online_oracle.window_mask(plan.tiling, window, first)
        assert (online_oracle.mask_of_lists(plan.prepared.lists, plan.tiling.count, p) == expected).all()


def test_svg_keeps_the_first_frame_where_there_is_room():
    for density, kept in ((0.3, True), (0.5, True), (0.2, False)):
        plan = plan_of(f"svg {density}", SHIPPED["480p"], slots=64)
        seen_by_all = plan.prepared.lists.key_count[:, 0] == plan.tiling.count
        assert seen_by_all.tolist() == [kept, kept]


def test_rows_are_spread_over_the_video_and_fixed():
    grid = SHIPPED["reference"]
    rows = sampled.sampled_rows(grid)
    assert len(rows) == 64 and (rows == sampled.sampled_rows(grid)).all()
    assert rows.min() >= grid.prefix and rows.max() < grid.prefix + grid.video
    steps = np.diff(rows)
    assert steps.min() > 0 and steps.max() <= 2 * grid.video / 64 + 1
    frame, place = np.divmod(rows - grid.prefix, grid.h * grid.w)
    assert set(frame) == set(range(grid.t)) and len(set(place // grid.w)) > 20 and len(set(place % grid.w)) > 30
    assert sampled.sampled_rows(TokenGrid(1, 3, 4, prefix=2)).tolist() == list(range(2, 14))


def planted(grid: TokenGrid, kinds: list[str], seed: int, strength: float = 6.0):
    """Return q, k, v of heads that attend to what shares their frame, place, row over time or column over time."""
    random = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij")
    t, h, w = (x.reshape(-1) for x in axes)
    group = {"frame": t, "place": h * grid.w + w, "row": h, "column": w}
    k = torch.stack([torch.randn(grid.video, 64, generator=random)[group[kind]] for kind in kinds], 1)[None]
    q = strength * k / 8 + 0.1 * torch.randn(k.shape, generator=random)
    return q, k + 0.1 * torch.randn(k.shape, generator=random), torch.randn(k.shape, generator=random)


def test_svg_finds_planted_heads():
    grid, right, count = TokenGrid(6, 12, 16), 0, 0
    plan = plan_of("svg 0.25", grid, heads=8)
    assert plan.tiling.pieces[0] > 2
    for seed in range(5):
        kinds = [("frame", "place")[(seed + i) % 2] for i in range(8)]
        chosen = plan.lists_for(*planted(grid, kinds, seed)).pattern_of_head[0].tolist()
        right += sum(("frame", "place")[p] == kind for p, kind in zip(chosen, kinds))
        count += len(kinds)
    assert right / count >= 0.95


def test_sta_finds_planted_heads():
    grid, right, count = TokenGrid(6, 12, 20), 0, 0
    plan = Plans(Schedule.parse("0 bf16 - sta"), grid, 6, slots=8, tile=(2, 2, 2)).at(0.5)
    assert plan.tiling.pieces == (3, 6, 10)
    assert online_oracle.sta_windows(plan.tiling) == [
        (3, 1, 10), (1, 5, 7), (3, 3, 3), (1, 6, 5), (1, 3, 10), (3, 6, 1)
    ]  # fmt: skip
    # A row over all frames needs (3, 1, 10), a column over all frames (3, 6, 1), a place (3, any, any).
    fits = {"row": {0}, "column": {5}, "place": {0, 2, 5}}
    for seed in range(5):
        kinds = ["row", "column", "place", "column", "row", "place"]
        chosen = plan.lists_for(*planted(grid, kinds, seed)).pattern_of_head[0].tolist()
        right += sum(p in fits[kind] for p, kind in zip(chosen, kinds))
        count += len(kinds)
    assert right / count >= 0.95


@pytest.mark.parametrize("words", ["svg 1", "topk 1", "topk 1 0.5", "cdf 1", "cdf 1 -1", "cdf 0.1 1", "topk 0.1 1"])
def test_the_largest_numbers_compute_everything(words):
    grid = GRIDS["both"]
    plan = plan_of(words, grid)
    q, k, v, _ = oracle.tensors(2, grid.tokens, HEADS, 64, std=2.0)
    lists = plan.lists_for(q, k, v)
    assert (lists.count == plan.tiling.count).all() and float(lists.density) == 1.0
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert oracle.error(fps_attention(q, k, v, plan), dense) < 1e-5


@pytest.mark.parametrize("words", ["svg 0.0001", "topk 0.0001", "cdf 0.0001 -1"])
def test_the_smallest_numbers_leave_one_tile(words):
    grid = TokenGrid(4, 6, 8)
    plan = plan_of(words, grid)
    lists = plan.lists_for(*varied(grid, plan.tiling))
    longest = plan.tiling.pieces[0] if words.startswith("svg") else 1
    assert int(lists.count.min()) >= 1 and int(lists.count.max()) <= longest


# --- what a call may do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["bf16 -", "fp8 x1"])
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("name", ["ragged", "both"])
def test_attention_and_its_gradients_are_those_of_the_mask(name, words, row):
    grid = GRIDS[name]
    plan = plan_of(words, grid, row=row)
    q, k, v = varied(grid, plan.tiling, dim=64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    made = oracle.with_lists(plan, plan.lists_for(*inputs))
    if row == "bf16 -":
        expected = oracle.exact(*inputs, oracle.visible(made, 2, HEADS))
    else:
        expected = oracle.fp8_attention(*inputs, made)[0].float()
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    out = fps_attention(*inputs, plan)
    grads, expected_grads = (torch.autograd.grad(o, inputs, grad) for o in (out, expected))
    for ours, theirs in zip((out, *grads), (expected, *expected_grads)):
        assert oracle.error(ours, theirs) < (1e-5 if row == "bf16 -" else 5e-3)
    # Recomputed activations: the reentrant form runs without gradients first, then with them.
    for reentrant in (True, False):
        again = [x.detach().requires_grad_() for x in inputs]
        checkpoint(lambda *x: fps_attention(*x, plan), *again, use_reentrant=reentrant).backward(grad)
        assert all(torch.equal(x.grad, theirs) for x, theirs in zip(again, grads))


def test_lists_without_gradients_have_no_backward_and_say_so():
    grid = GRIDS["even"]
    for words in WORDS:
        plan = plan_of(words, grid)
        q, k, v = varied(grid, plan.tiling, dim=64)
        lists = plan.lists_for(q, k, v)
        fps_attention(q, k, v, plan, lists=lists)
        leaf = q.clone().requires_grad_()
        with torch.no_grad():
            assert plan.lists_for(leaf, k, v).forward_only == lists.forward_only
        assert not plan.lists_for(leaf, k, v).forward_only
        if words.startswith(("svg", "sta")):
            assert not lists.forward_only
            continue
        assert lists.forward_only and lists.key_ids.shape[-1] == 1
        with pytest.raises(ValueError, match=r"made without gradients.*lists_for"):
            fps_attention(leaf, k, v, plan, lists=lists)


@pytest.mark.parametrize("words", WORDS)
def test_what_sampling_asks_for_first_serves_training(words):
    grid = GRIDS["even"]
    with torch.inference_mode():
        plan = plan_of(words, grid)
        q, k, v = varied(grid, plan.tiling, dim=64)
        fps_attention(q, k, v, plan)
    inputs = [x.clone().requires_grad_() for x in varied(grid, plan.tiling, dim=64)]
    fps_attention(*inputs, plan).sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


@pytest.mark.parametrize("words", WORDS)
def test_a_call_is_traced_whole(words):
    torch._dynamo.reset()
    grid = GRIDS["both"]
    plan = plan_of(words, grid)
    q, k, v = varied(grid, plan.tiling, dim=64)
    compiled = torch.compile(lambda *x: fps_attention(*x, plan), fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v), fps_attention(q, k, v, plan))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    grads, expected = (
        torch.autograd.grad(out.square().sum(), inputs) for out in (compiled(*inputs), fps_attention(*inputs, plan))
    )
    assert all(torch.equal(a, b) for a, b in zip(grads, expected))


class NothingIsReadBack(TorchDispatchMode):
    """Refuses every operation whose result the host reads or whose shape depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "repeat_interleave")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if any(word in name for word in self.WAITING):
            raise RuntimeError(f"{name} waits for the device")
        if name == "_to_copy" or name.startswith("copy_"):
            devices = {x.device for x in args if isinstance(x, torch.Tensor)}
            assert len(devices) == 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("words", WORDS)
def test_no_call_reads_anything_back(words):
    grid = GRIDS["ragged"]
    plan = plan_of(words, grid)
    inputs = [x.requires_grad_() for x in varied(grid, plan.tiling, dim=64)]
    with NothingIsReadBack():
        made = plan.lists_for(*inputs)
        with pytest.raises(RuntimeError, match="waits for the device"):  # the reference may; the net holds
            reference.forward(*(x.detach() for x in inputs), make_spec(plan, made, "reference"))
    # Without any data at all: shapes depend on the plan alone.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        lists = plan.lists_for(*(mode.from_tensor(x) for x in inputs))
    for name in ("ids", "count", "pattern_of_head", "key_ids", "key_count", "density"):
        assert getattr(lists, name).shape == getattr(made, name).shape, name
        assert getattr(lists, name).dtype == getattr(made, name).dtype, name


@pytest.mark.parametrize("words", WORDS)
def test_chunks_of_heads_change_nothing(words, monkeypatch):
    grid = GRIDS["ragged"]
    plan = plan_of(words, grid, heads=5)
    inputs = [x.requires_grad_() for x in varied(grid, plan.tiling, heads=5)]
    whole = plan.lists_for(*inputs)
    monkeypatch.setattr(mask_lists, "CHUNK_BYTES", 1)
    assert mask_lists.head_chunks(2, 5, 10) == [slice(i, i + 1) for i in range(5)]
    parts = plan.lists_for(*inputs)
    for name in ("ids", "count", "pattern_of_head", "key_ids", "key_count", "density"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_autocast_changes_no_choice():
    grid = GRIDS["even"]
    for words in WORDS:
        plan = plan_of(words, grid)
        q, k, v = varied(grid, plan.tiling)
        plain = plan.lists_for(q, k, v)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = plan.lists_for(q, k, v)
        assert torch.equal(plain.ids, cast.ids) and torch.equal(plain.pattern_of_head, cast.pattern_of_head)


@pytest.mark.parametrize("words", WORDS)
def test_broken_numbers_and_huge_scores_still_give_legal_lists(words):
    grid = GRIDS["both"]
    plan = plan_of(words, grid)
    q, k, v = varied(grid, plan.tiling, dim=64)
    fps_attention(q * 1e4, k * 1e4, v, plan)
    assert float(plan.lists_for(q * 1e4, k * 1e4, v).density) > 0
    for value in (float("nan"), float("inf")):
        broken = k.clone()
        broken[:, 20] = value
        lists = plan.lists_for(q, broken, v)
        make_spec(plan, lists, "reference").check()
        assert (lists.count > 0).all()


@pytest.mark.parametrize("slots", [64, 128])
@pytest.mark.parametrize("grid", SHIPPED.values(), ids=SHIPPED.keys())
def test_every_shipped_grid_runs(grid, slots):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, grid.tokens, 2, 8, generator=random) for _ in range(3))
    for words in ("svg 0.3", "sta", "topk 0.15", "cdf 0.9"):
        plan = plan_of(words, grid, heads=2, slots=slots)
        lists = plan.lists_for(q, k, v)
        assert lists.problem(plan.tiling.count, 1, 2) is None
        make_spec(plan, lists, "reference").check()
        assert (lists.count > 0).all() and 0 < float(lists.density) <= 1
        clear_plans()
