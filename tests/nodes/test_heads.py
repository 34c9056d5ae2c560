"""Head tables and online selectors in the model patch, on the fake host: results, bands, branches, what is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.head_table import Band, HeadTable
from fpsattention.kernels.pattern_text import parse_pattern
from fpsattention.kernels.patterns import pattern_pairs
from fpsattention.kernels.plan import plans_for
from fpsattention.kernels.schedule import Schedule
from fpsattention.kernels.selectors import SelectorError
from fpsattention.nodes.head_use import run_head_use, table_use
from fpsattention.nodes.model_call import BRANCHES
from fpsattention.nodes.patch import PatchError, apply_patch
from fpsattention.nodes.report_image import report_image
from fpsattention.nodes.report_text import report_summary, report_text
from fpsattention.nodes.settings import KEY, Settings, choose_settings

LAYERS, HEADS = 3, 2
GRID = TokenGrid(3, 12, 16)
WORDS = ("full", "skip", "window 1 all all", "window all 40% 40% + first 1", "stripe 3x3x4 0-3,17")
BF16 = "0.00 bf16 - heads"


def table_of(chosen, words=WORDS, untils=(0.0,), schedule=BF16, grid=GRID, tile=(1, 4, 4), slots=16) -> HeadTable:
    """A table of ``chosen (bands, branches, layers, heads)``."""
    bands = tuple(Band(until, np.array(c, dtype=np.uint8)) for until, c in zip(untils, chosen))
    patterns = tuple(parse_pattern(word) for word in words)
    return HeadTable(patterns, bands, grid, tile, slots, Schedule.parse(schedule), "tiny")


MIXED = table_of([[[[0, 1], [2, 3], [4, 3]]]])


def patched(host, table=None, schedule=None, model=None, header=None, **settings):
    given = None if schedule is None else Schedule.parse(schedule)
    found = choose_settings(header, given, settings.pop("backend", "auto"), table)
    return apply_patch(model or host.Patcher(host.WanModel(HEADS, LAYERS)), found)


def run_of(model):
    return model.get_attachment(KEY).recorder.runs[-1]


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def masked(host, table: HeadTable, sigma: float = 0.7, branch: int = 0, grid: TokenGrid = GRID, **options):
    """The model with each head's attention masked by PyTorch, token by token, from the patterns' tile masks."""
    tiling = choose_tiling(grid, table.slots, table.tile)
    tile_of = np.empty(grid.tokens, dtype=np.int64)
    for tile, row in enumerate(tiling.index):
        tile_of[row[row >= 0]] = tile
    chosen = table.bands[table.band_at(sigma)].chosen[branch]
    tiles = [pattern.mask(tiling) for pattern in table.patterns]
    masks = [torch.tensor(np.stack([tiles[i][tile_of][:, tile_of] for i in row])) for row in chosen]
    layer = iter(range(99))

    def override(func, q, k, v, heads, **kwargs):
        if q.shape != k.shape:
            return func(q, k, v, heads, **kwargs)
        b, s, width = q.shape
        q, k, v = (x.reshape(b, s, heads, -1).transpose(1, 2).double() for x in (q, k, v))
        mask = masks[next(layer)][None]
        scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
        out = torch.nan_to_num(scores.softmax(-1)) @ v
        return out.transpose(1, 2).reshape(b, s, width).float()

    model = host.Patcher(host.WanModel(HEADS, LAYERS))
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return host.run(model, [sigma], **options)[0]


def test_each_head_sees_its_pattern(host):
    model = patched(host, MIXED)
    (out,) = host.run(model, [0.7])
    assert close(out, masked(host, MIXED)) < 1e-5
    (plain,) = host.run(host.Patcher(host.WanModel(HEADS, LAYERS)), [0.7])
    assert close(out, plain) > 1e-3
    (step,) = run_of(model).steps.values()
    assert (step.sparse, step.dense, step.window) == (LAYERS, 0, "heads")


@pytest.mark.parametrize("kind", ["bf16 -", "fp8 x1"])
def test_a_table_of_one_window_is_that_window_bit_for_bit(host, kind):
    window = table_of([np.zeros((1, LAYERS, HEADS))], ("window all 40% 40%",), schedule=f"0 {kind} heads")
    (out,) = host.run(patched(host, window), [0.7])
    header = Header(Schedule.parse(f"0 {kind} all 40% 40%"), slots=16, tile=(1, 4, 4))
    (same,) = host.run(patched(host, header=header), [0.7])
    assert torch.equal(out, same)


def test_a_table_of_all_full_is_dense_bit_for_bit(host):
    """Without FP8 the host's own attention runs; with it what 'all all all' runs."""
    full = table_of([np.zeros((1, LAYERS, HEADS))], ("full",))
    model = patched(host, full)
    (plain,) = host.run(host.Patcher(host.WanModel(HEADS, LAYERS)), [0.7])
    assert torch.equal(host.run(model, [0.7])[0], plain)
    (step,) = run_of(model).steps.values()
    assert (step.sparse, step.dense, step.reasons, step.density) == (0, LAYERS, {}, 1.0)
    assert "whose heads all see everything" in report_text(model.get_attachment(KEY).settings, [run_of(model)], {})
    fp8 = patched(host, full, "0 fp8 x1 heads")
    header = Header(Schedule.parse("0 fp8 x1 all all all"), slots=16, tile=(1, 4, 4))
    assert torch.equal(host.run(fp8, [0.7])[0], host.run(patched(host, header=header), [0.7])[0])


def test_bands_follow_sigma_and_are_built_ahead(host):
    chosen = [np.full((1, LAYERS, HEADS), i) for i in (2, 3)]
    table = table_of(chosen, untils=(0.5, 0.0))
    model = patched(host, table)
    built = []
    wan = model.model.diffusion_model
    forward = wan._forward

    def looking(*args, **kwargs):
        built.append(len([key for key in run_of(model).built if isinstance(key, tuple)]))
        return forward(*args, **kwargs)

    wan._forward = looking
    first, second = host.run(model, [0.9, 0.2])
    del wan._forward
    assert built == [2, 2], "both bands before the first step"
    assert close(first, masked(host, table, 0.9)) < 1e-5 and close(second, masked(host, table, 0.2)) < 1e-5
    a, b = run_of(model).steps.values()
    tiling = choose_tiling(GRID, 16, (1, 4, 4))
    for step, index in ((a, 2), (b, 3)):
        exact = pattern_pairs(table.patterns[index], tiling) / GRID.tokens**2
        assert step.density == pytest.approx(exact) and step.planned_density == pytest.approx(exact)
    assert run_of(model).built == {}, "a finished run keeps no plans"


def test_a_batch_that_mixes_bands_stays_dense(host):
    table = table_of([np.full((1, LAYERS, HEADS), i) for i in (2, 3)], untils=(0.5, 0.0))
    model = patched(host, table)
    wan = model.model.diffusion_model
    forward = wan.forward

    def mixed(x, timestep, context, clip_fea, concat, options, **kwargs):
        options["sigmas"] = torch.tensor([0.9, 0.2])
        return forward(x, timestep, context, clip_fea, concat, options, **kwargs)

    wan.forward = mixed
    host.run(model, [0.9], batch=2)
    (step,) = run_of(model).steps.values()
    assert (step.sparse, list(step.reasons)) == (0, ["the batch mixes sigmas of different phases"])


TWO = table_of([[np.full((LAYERS, HEADS), 2), np.full((LAYERS, HEADS), 3)]])


@pytest.mark.parametrize("order, batch", [([0], 1), ([1], 1), ([1, 0], 2), ([0, 1], 4), ([1, 1], 2)])
def test_branches_of_guidance_have_their_own_patterns(host, order, batch):
    """The host stacks the branches in equal parts; every sample is compared with its branch alone."""
    model = patched(host, TWO)
    (out,) = run_with(host, model, order, batch)
    each = [masked(host, TWO, branch=branch, batch=batch) for branch in (0, 1)]
    for sample in range(batch):
        branch = order[sample * len(order) // batch]
        assert close(out[sample], each[branch][sample]) < 1e-5
        assert close(out[sample], each[1 - branch][sample]) > 1e-4
    (step,) = run_of(model).steps.values()
    densities = TWO.head_densities(choose_tiling(GRID, 16, (1, 4, 4)), 0)[order].mean()
    assert step.density == pytest.approx(densities) and BRANCHES not in run_of(model).notes
    use = run_head_use(model.get_attachment(KEY).settings, run_of(model))
    assert use.density == pytest.approx(np.full((LAYERS, HEADS), densities))


@pytest.mark.parametrize("order, batch", [(None, 1), ([], 1), ([0, 1, 2], 3), ([0, 1], 3), ("01", 2)])
def test_unknown_branches_take_the_prompts_and_say_so_once(host, order, batch):
    model = patched(host, TWO)
    (out,) = run_with(host, model, order, batch)
    assert close(out, masked(host, TWO, batch=batch)) < 1e-5
    assert run_of(model).notes.count(BRANCHES) == 1


def run_with(host, model, order, batch):
    wan = model.model.diffusion_model
    forward = wan.forward

    def ordered(x, timestep, context, clip_fea, concat, options, **kwargs):
        options.pop("cond_or_uncond")
        if order is not None:
            options["cond_or_uncond"] = order
        return forward(x, timestep, context, clip_fea, concat, options, **kwargs)

    wan.forward = ordered
    return host.run(model, [0.7], batch=batch)


def test_a_table_alone_brings_its_schedule_and_tile(host):
    table = table_of(MIXED.bands[0].chosen[None], schedule="0.5 dense\n0 bf16 - heads")
    settings = choose_settings(None, None, "auto", table)
    assert settings.schedule == table.schedule and settings.source == "the head table"
    assert settings.tiles == {"slots": 16, "tile": (1, 4, 4), "table": table}
    assert "head table from the heads input" in settings.choices


def test_a_file_brings_its_table(host):
    header = Header(Schedule.parse(BF16), slots=16, tile=(1, 4, 4), heads=MIXED)
    settings = choose_settings(header, None, "auto")
    assert settings.table is MIXED and settings.table_source == "the model file" and settings.notes == ()
    assert settings.tiles["smooth_k"] is True and settings.tiles["table"] is MIXED
    (out,) = host.run(patched(host, header=header), [0.7])
    assert torch.equal(out, host.run(patched(host, MIXED), [0.7])[0])
    other = choose_settings(header, None, "auto", TWO)
    assert other.table is TWO and "in place of the model file's" in other.table_source
    assert any("replaces the head table that this model's file carries" in note for note in other.notes)
    assert not any("replaces the one that" in note for note in other.notes), "the schedules are the same"
    same = choose_settings(header, None, "auto", HeadTable.from_json(MIXED.to_json()))
    assert same.notes == () and same.table_source == "the heads input"


def test_a_file_whose_schedule_does_not_say_heads_needs_no_table():
    header = Header(Schedule.parse("0 bf16 - all 40% 40%"), heads=MIXED)
    settings = choose_settings(header, None, "auto")
    assert settings.table is None and settings.notes == ()
    assert choose_settings(header, Schedule.parse(BF16), "auto").table is MIXED


def test_heads_without_a_table_is_a_sentence():
    with pytest.raises(SelectorError, match="no head table; connect Load Head Patterns"):
        choose_settings(None, Schedule.parse(BF16), "auto")


def test_an_unused_table_is_said(host):
    model = patched(host, MIXED, "0 bf16 - all 40% 40%")
    host.run(model, [0.7])
    assert any("never says 'heads'" in note for note in run_of(model).notes)
    assert model.get_attachment(KEY).settings.table is None


def test_a_table_of_another_model_is_refused(host):
    with pytest.raises(PatchError, match=r"for 3 layers of 2 heads \(it was searched on tiny\), this model has 4 of 2"):
        patched(host, MIXED, model=host.Patcher(host.WanModel(HEADS, 4)))
    with pytest.raises(PatchError, match="this model has 3 of 1"):
        patched(host, MIXED, model=host.Patcher(host.WanModel(1, LAYERS)))


def test_a_table_of_another_grid_says_so_once(host):
    model = patched(host, MIXED)
    (out,) = host.run(model, [0.9], size=(3, 28, 32))
    grid = TokenGrid(3, 14, 16)
    assert close(out, masked(host, MIXED, 0.9, grid=grid, size=(3, 28, 32))) < 1e-5
    host.run(model, [0.9, 0.3], size=(3, 28, 32))
    assert sum("rebuilt by rule" in note for note in run_of(model).notes) == 1
    host.run(model, [0.9])
    assert not any("rebuilt by rule" in note for note in run_of(model).notes)


def test_the_report_shows_the_tables_densities(host):
    chosen = np.stack([MIXED.bands[0].chosen, np.full((1, LAYERS, HEADS), 2)])
    table = table_of(chosen, untils=(0.5, 0.0), schedule="0.95 dense\n0 bf16 - heads")
    model = patched(host, table)
    host.run(model, [1.0, 0.9, 0.7, 0.2])
    settings, run = model.get_attachment(KEY).settings, run_of(model)
    use = run_head_use(settings, run)
    tiling = choose_tiling(GRID, 16, (1, 4, 4))
    a, b = (table.head_densities(tiling, band)[0] for band in (0, 1))
    assert use.steps == 3 and use.density == pytest.approx((2 * a + b) / 3)
    assert use.density.mean() == pytest.approx(np.mean([s.density for s in list(run.steps.values())[1:]]))
    heads = {each.words: each.heads for each in use.patterns}
    # Two of three steps run the first band.
    expected = {"full": 2 / 3, "skip": 2 / 3, WORDS[2]: 2 * 1 / 3 + 6 / 3, WORDS[3]: 4 / 3, WORDS[4]: 2 / 3}
    assert heads == pytest.approx(expected) and use.dense == 0
    text = report_text(settings, [run], {})
    assert f"mean density {use.density.mean():.1%} in the 3 steps" in text
    for each in use.patterns:
        (line,) = [line for line in text.splitlines() if each.words in line]
        assert f"{each.heads:.1f} of 6 heads" in line and f"density {each.density:.1%}" in line
    rows = [line.split(": ")[1].split() for line in text.splitlines() if line.strip().startswith("layer ")]
    assert np.array(rows, dtype=float) == pytest.approx(100 * use.density, abs=0.51)
    assert "head table:" in report_summary(settings, [run], {})
    without = report_image(Settings(settings.schedule, "x"), [run], {})
    assert report_image(settings, [run], {}).shape[1] > without.shape[1]


def test_layers_that_stayed_dense_count_as_dense_heads(host):
    model = apply_patch(
        host.Patcher(host.WanModel(HEADS, LAYERS)),
        Settings(Schedule.parse(BF16), "x", table=MIXED, table_source="y", dense_blocks=frozenset({1})),
    )
    host.run(model, [0.7])
    use = run_head_use(model.get_attachment(KEY).settings, run_of(model))
    assert use.density[1].tolist() == [1.0, 1.0] and use.dense == 2
    assert sum(each.heads for each in use.patterns) == 4
    (step,) = run_of(model).steps.values()
    assert use.density.mean() == pytest.approx(step.density)


def test_what_a_table_says_on_its_own_grid():
    use = table_use(TWO)
    exact = TWO.head_densities(choose_tiling(GRID, 16, (1, 4, 4)), 0)
    assert use.density == pytest.approx(exact.mean(0)) and sum(each.heads for each in use.patterns) == 6
    assert [each.heads for each in use.patterns] == [3, 3]


@pytest.mark.parametrize("words", ["svg 0.3", "sta", "topk 0.3", "cdf 0.8"])
@pytest.mark.parametrize("kind", ["bf16 -", "fp8 x1"])
def test_online_selectors_run_and_their_density_is_told(host, words, kind):
    schedule = Schedule.parse(f"0 {kind} {words}")
    model = patched(host, schedule=f"0 {kind} {words}")
    seen = []

    def watch(func, q, k, v, heads, **kwargs):
        if q.shape == k.shape:
            plan = plans_for(schedule, GRID, HEADS).at(0.7)
            seen.append(float(plan.lists_for(*(x.view(*x.shape[:2], heads, -1) for x in (q, k, v))).density))
        return func(q, k, v, heads, **kwargs)

    (out,) = host.run(model, [0.7])
    assert bool(out.isfinite().all())
    run = run_of(model)
    (step,) = run.steps.values()
    assert step.sparse == LAYERS and step.reasons == {} and step._unread == []
    assert 0 < step.density <= 1
    assert sorted(step.layers) == [0, 1, 2] and all(calls == 1 for _, calls in step.layers.values())
    # The first block's q, k and v are those of the dense model.
    plain = host.Patcher(host.WanModel(HEADS, LAYERS))
    plain.model_options["transformer_options"]["optimized_attention_override"] = watch
    host.run(plain, [0.7])
    assert step.layers[0][0] == pytest.approx(seen[0], rel=1e-6)
    assert step.density == pytest.approx(np.mean([total for total, _ in step.layers.values()]))
    text = report_text(model.get_attachment(KEY).settings, [run], {})
    assert f"{words} chose density {step.density:.1%} in the mean" in text
    assert report_image(model.get_attachment(KEY).settings, [run], {}).shape[1] > 560
