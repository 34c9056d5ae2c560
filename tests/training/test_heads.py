"""Training with plans that differ by head: tables of every pattern, and selectors that decide in every call."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fpsattention.kernels.checkpoint import read_header
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.head_table import Band, HeadTable, write_head_table
from fpsattention.kernels.pattern_text import parse_pattern
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.attention import attention_state
from fpsattention.training.config import ConfigError
from fpsattention.training.config_file import load_config, to_toml, with_changes
from fpsattention.training.dry_run import phase_table
from fpsattention.training.evaluation.request import EvaluationError, ModelFile, make_methods
from fpsattention.training.export import export, export_run
from fpsattention.training.export_saved import export_state
from fpsattention.training.fits import check_fits
from fpsattention.training.inspection import describe
from fpsattention.training.loop import fit
from fpsattention.training.model import load_model, random_model
from fpsattention.training.names import WanShape
from fpsattention.training.parallel.recompute import recompute_blocks
from fpsattention.training.passes import deal, step_places
from fpsattention.training.ramp import Ramp
from fpsattention.training.sample import sample
from fpsattention.training.sparse import DENSE, SparseAttention, latent_grid
from fpsattention.training.validation import validate

from .conftest import random_samples

CHILD = Path(__file__).with_name("parallel_child.py")
LATENT = (16, 3, 8, 8)
GRID, TILE, SLOTS = TokenGrid(3, 4, 4), (1, 2, 2), 4  # 3 x 2 x 2 tiles of 4 tokens
# Per (layer, head); every kind of pattern, and a layer of nothing but the whole.
WORDS = (
    ("skip", "stripe 3x2x2 0,5"),
    ("window 1 all all + stripe 3x2x2 7", "full"),
    ("full", "full"),
    ("window all 2 2", "first 1"),
)
# Density of each on this grid: shares of 12 tiles.
DENSITY = ((0, 2 / 12), ((5 + 4 + 5) / 36, 1), (1, 1), (3 / 12, 4 / 12))
# Without its gate, which on untrained weights lets every tile through.
ONLINE = ("svg 0.3", "topk 0.3", "cdf 0.9 -1", "sta")


def head_table(words=WORDS, *more, untils=(0.0,), branches=1) -> HeadTable:
    """Return a table whose bands (then branches) hold these words per (layer, head)."""
    each = [words, *more]
    known = sorted({word for one in each for layer in one for word in layer})
    arrays = [np.array([[known.index(word) for word in layer] for layer in one], dtype=np.uint8) for one in each]
    bands = [Band(until, np.stack(arrays[i * branches : (i + 1) * branches])) for i, until in enumerate(untils)]
    return HeadTable(tuple(parse_pattern(word) for word in known), tuple(bands), GRID, TILE, SLOTS)


def attending(text: str, table: HeadTable | None = None) -> SparseAttention:
    return SparseAttention(Schedule.parse(text), SLOTS, TILE, backend="reference", table=table)


def make_model(layers: int = 4):
    model = random_model(WanShape(dim=256, ffn_dim=64, layers=layers, text_dim=16), 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.02, generator=torch.Generator().manual_seed(3))
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


def inputs(batch: int = 2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *LATENT, generator=generator)
    return x, torch.full((batch,), 700.0), torch.randn(batch, 3, 16, generator=generator)


def gradients(model, attention, sigma=0.7, branch=0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with attention_state(model).step(attention, sigma, LATENT, branch):
        out = model(*inputs(), return_dict=False)[0]
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).mean().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def outputs(model, attention, sigma=0.7, branch=0, batch=2):
    with attention_state(model).step(attention, sigma, LATENT, branch):
        return model(*inputs(batch), return_dict=False)[0]


@pytest.fixture
def table_file(tmp_path) -> Path:
    return write_head_table(tmp_path / "heads.json", head_table())


@pytest.fixture
def run_config(make_config, table_file):
    """Return a function that gives the configuration of a run with the mixed table, with changes."""

    def make(schedule="0.6 fp8 x1 heads\n0 bf16 - heads", **changes):
        section = {"schedule": schedule, "slots": SLOTS, "tile": list(TILE)}
        if "heads" in schedule:
            section["heads"] = str(table_file)
        usual = {"model__dim": 256, "model__layers": 4, "attention": section, "output__report": False}
        return make_config(**{**usual, **changes})

    return make


# What each query tile sees, written by hand: tiles are numbered by t, h, w.
def seen_tiles(word: str) -> torch.Tensor:
    mask = torch.zeros(12, 12, dtype=torch.bool)
    for part in word.split(" + "):
        for query in range(12):
            for key in range(12):
                mask[query, key] |= {
                    "full": True,
                    "skip": False,
                    "stripe 3x2x2 0,5": key in (0, 5),
                    "stripe 3x2x2 7": key == 7,
                    "window 1 all all": key // 4 == query // 4,
                    "window all 2 2": key % 4 == query % 4,
                    "first 1": key // 4 == 0,
                }[part]
    return mask


def oracle(words: tuple[str, ...]):
    """Return masked attention of float64 rows, one after the other, with the words' masks per head."""
    tile = torch.tensor([t * 4 + h // 2 * 2 + w // 2 for t in range(3) for h in range(4) for w in range(4)])

    def attend(q, k, v):
        out = []
        for head, word in enumerate(words):
            mask = seen_tiles(word)[tile][:, tile]
            a, b, c = (x[:, :, head].double() for x in (q, k, v))
            scores = (a @ b.transpose(1, 2) / a.shape[-1] ** 0.5).masked_fill(~mask, -1e30)
            weights = torch.where(mask, scores.softmax(-1), 0.0)
            out.append(weights @ c)
        return torch.stack(out, 2).to(v.dtype)

    return attend


def test_densities_of_the_words_are_those_written_here():
    for words, densities in zip(WORDS, DENSITY, strict=True):
        assert [float(seen_tiles(word).float().mean()) for word in words] == pytest.approx(densities, abs=1e-6)
    assert head_table().head_densities(attending("0 bf16 - heads", head_table()).plans(GRID, 2).tiling(0.5), 0)[
        0
    ] == pytest.approx(np.array(DENSITY))


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_gradients_of_a_layer_are_those_of_masked_attention(layer):
    words = (WORDS[layer],)
    ours, theirs = make_model(1), make_model(1)
    out, found = gradients(ours, attending("0 bf16 - heads", head_table(words)))
    attention_state(theirs)
    theirs.blocks[0].attn1.processor.instead = oracle(words[0])
    expected_out, expected = gradients(theirs, DENSE)
    assert (out - expected_out).abs().max() <= 1e-5 * expected_out.abs().max()
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-9, name
    # In FP8 the same, but for its rounding.
    rounded_out, rounded = gradients(make_model(1), attending("0 fp8 x1 heads", head_table(words)))
    assert 0 < (rounded_out - expected_out).norm() < 0.05 * expected_out.norm()
    name = "blocks.0.attn1.to_v.weight"
    assert torch.cosine_similarity(rounded[name].flatten(), expected[name].flatten(), 0) > 0.99


def test_a_table_of_whole_layers_is_dense_and_unknown_layers_stay_dense(model):
    dense = outputs(model, DENSE)
    assert torch.equal(outputs(model, attending("0 bf16 - heads", head_table((("full", "full"),) * 4))), dense)
    short = attending("0 bf16 - heads", head_table((("full", "full"), ("skip", "full"))))
    longer = attending("0 bf16 - heads", head_table((("full", "full"), ("skip", "full"), *[("full", "full")] * 2)))
    assert torch.equal(outputs(model, short), outputs(model, longer))
    assert not torch.allclose(outputs(model, short), dense, atol=1e-4)


def test_a_table_of_another_number_of_heads_is_refused_in_a_step(model):
    other = attending("0 bf16 - heads", head_table((("full", "skip", "full"),) * 4))
    step = attention_state(model).step(other, 0.5, LATENT)
    with pytest.raises(ValueError, match="for 4 layers of 3 heads, this model has 4 of 2"), step:
        pass
    outputs(model, DENSE)  # nothing is left open


@pytest.mark.parametrize("kind", ["fp8 x1", "bf16 -"])
@pytest.mark.parametrize("words", ["heads", *ONLINE])
@pytest.mark.parametrize("mode", ["full", "attention"])
def test_recomputed_gradients_are_equal(kind, words, mode):
    attention = attending(f"0 {kind} {words}", head_table())
    plain, recomputed = make_model(2 if words != "heads" else 4), make_model(2 if words != "heads" else 4)
    recompute_blocks(recomputed, mode)
    out, expected = gradients(plain, attention)
    again, found = gradients(recomputed, attention)
    assert torch.equal(out, again) and found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.isfinite(torch.cat([grad.flatten() for grad in found.values()])).all()
    densities = [attention_state(one).online_density for one in (plain, recomputed)]
    assert densities == [None, None] if words == "heads" else densities[0] == pytest.approx(densities[1], rel=1e-6)


@pytest.mark.parametrize("words", ["heads", *ONLINE])
@pytest.mark.parametrize("kind, dtype", [("fp8 x1", "bf16"), ("bf16 -", "fp32")])
def test_a_short_fine_tune_lowers_the_loss(run_config, words, kind, dtype):
    config = run_config(
        f"0.9 dense\n0 {kind} {words}", optim__steps=12, optim__lr=3e-3, optim__warmup=1, dtype=dtype,
        activation_checkpointing="full", model__layers=4 if words == "heads" else 2, checkpoint__every=0,
    )  # fmt: skip
    samples = random_samples(4)
    start = make_model(config.model.layers)
    attention = config.attention.resolved()
    before = validate(start, samples, sigmas=(0.95, 0.6, 0.3), attention=attention, dtype=dtype)
    result = fit(config, samples, samples, model=start, progress=None)
    after = validate(result.model, samples, sigmas=(0.95, 0.6, 0.3), attention=attention, dtype=dtype)
    assert after.loss < 0.97 * before.loss
    assert 1 / 3 < after.density < 1  # one of three noise levels is dense
    densities = [record["density"] for record in result.records]
    assert all(0 < density <= 1 for density in densities) and min(densities) < 1
    if words == "heads":
        assert after.density == pytest.approx((1 + 2 * np.mean(DENSITY)) / 3)


def test_a_resumed_run_is_bit_equal_and_another_table_is_refused(run_config, tmp_path, table_file, weights_hash):
    samples = random_samples(5)
    straight = fit(run_config(checkpoint__dir=str(tmp_path / "a")), samples, progress=None)
    config = run_config(checkpoint__dir=str(tmp_path / "b"))

    class Halfway:
        requested = False

    def stop(step, _):
        Halfway.requested = step >= 4

    stopped = fit(config, samples, progress=None, stop=Halfway(), on_step=stop)
    assert stopped.stopped and stopped.step == 4
    other = head_table((("skip", "skip"), *WORDS[1:]))
    elsewhere = write_head_table(tmp_path / "elsewhere.json", head_table())
    write_head_table(table_file, other)
    with pytest.raises(ConfigError, match=r"the head table .*heads\.json has other patterns than the run started with"):
        fit(run_config(checkpoint__dir=str(tmp_path / "b")), samples, progress=None, resume="auto")
    # The state still knows its own table, and the same table may lie elsewhere.
    assert read_header(export_state(tmp_path / "b" / "step-000004")).heads == head_table()
    moved = with_changes(config, attention__heads=str(elsewhere))
    resumed = fit(moved, samples, progress=None, resume="auto")
    assert weights_hash(resumed.model) == weights_hash(straight.model)
    table_file.unlink()
    assert with_changes(config, optim__lr=0.1).attention.table == head_table()


def test_an_exported_file_runs_as_the_model_did(run_config):
    config = run_config(checkpoint__every=0, output__dtype="fp32")
    result = fit(config, random_samples(3), progress=None)
    path = export_run(config, result.model, result.step, GRID)
    header = read_header(path)
    assert header.heads == head_table() and header.tile == TILE
    read = SparseAttention(header.schedule, header.slots, header.tile, header.smooth_k, "reference", header.heads)
    back, attention = load_model(path), config.attention.resolved()
    for sigma in (0.9, 0.2):
        assert torch.equal(outputs(back, read, sigma), outputs(result.model.eval(), attention, sigma))
    assert not torch.allclose(outputs(back, read, 0.2), outputs(back, DENSE, 0.2), atol=1e-4)
    # A schedule that does not use it takes no table along.
    window = replace(attention, schedule=Schedule.parse("0 fp8 x1 all 2 2"))
    assert read_header(export(result.model, path, attention=window)).heads is None


TOLD_APART = (("full", "full"),) * 4, (("skip", "window 1 all all"),) * 4


def test_branches_have_their_own_patterns(model):
    apart = attending("0 bf16 - heads", head_table(*TOLD_APART, branches=2))
    one, two = (attending("0 bf16 - heads", head_table(words)) for words in TOLD_APART)
    mixed = outputs(model, apart, branch=(0, 1))
    assert torch.allclose(mixed[:1], outputs(model, one)[:1], atol=1e-5)
    assert torch.allclose(mixed[1:], outputs(model, two)[1:], atol=1e-5)
    assert torch.allclose(outputs(model, apart, branch=1), outputs(model, two), atol=1e-5)
    assert not torch.allclose(mixed[1:], outputs(model, one)[1:], atol=1e-3)


def test_sampling_runs_the_negative_prompt_on_its_branch(model):
    apart = attending("0.95 dense\n0 bf16 - heads", head_table(*TOLD_APART, branches=2))
    one, two = (attending("0.95 dense\n0 bf16 - heads", head_table(words)) for words in TOLD_APART)
    text = inputs()[2][0]
    common = {"shape": LATENT, "seeds": [1], "text": text, "steps": 3}
    # With the same text on both branches, cfg 0 is the negative branch alone, and cfg 1 runs the prompt's only.
    negative, report = sample(model, **common, attention=apart, cfg=0.0, negative=text)
    assert torch.allclose(negative, sample(model, **common, attention=two)[0], atol=1e-5)
    prompt, alone = sample(model, **common, attention=apart)
    assert torch.allclose(prompt, sample(model, **common, attention=one)[0], atol=1e-5)
    assert not torch.allclose(prompt, negative, atol=1e-3)
    assert [step["density"] for step in alone] == pytest.approx([1, 1, 1])
    assert [step["density"] for step in report] == pytest.approx([1, 0.5 + 0.5 / 6, 0.5 + 0.5 / 6])


def test_samples_without_text_are_trained_on_the_negative_branch(run_config, tmp_path):
    losses = {}
    for name, words, branches, dropout in (
        ("apart", TOLD_APART, 2, 1.0), ("negative", TOLD_APART[1:], 1, 1.0), ("prompt", TOLD_APART[:1], 1, 1.0),
    ):  # fmt: skip
        file = write_head_table(tmp_path / f"{name}.json", head_table(*words, branches=branches))
        section = {"schedule": "0 bf16 - heads", "heads": str(file), "slots": SLOTS, "tile": list(TILE)}
        config = run_config(
            attention=section, flow={"text_dropout": dropout}, checkpoint__dir=str(tmp_path / name), optim__steps=3
        )
        records = fit(config, random_samples(5), model=make_model(), progress=None).records
        losses[name] = [record["loss"] for record in records]
        assert records[0]["density"] == pytest.approx(1.0 if name == "prompt" else 1 / 6)
    assert losses["apart"] == pytest.approx(losses["negative"], rel=1e-6)
    assert losses["apart"] != pytest.approx(losses["prompt"], rel=1e-4)


def test_a_pass_holds_one_band(run_config, tmp_path):
    bands = head_table(WORDS, WORDS[::-1], untils=(0.7, 0.0))
    file = write_head_table(tmp_path / "bands.json", bands)
    section = {"schedule": "0 fp8 x1 heads", "heads": str(file), "slots": SLOTS, "tile": list(TILE)}
    config = run_config(attention=section, optim__batch=8, flow__stratified=True)
    places = step_places(config, 0, random_samples(5), config.attention.resolved())
    assert {place.phase for place in places} == {0} and {place.band for place in places} == {0, 1}
    for one in deal(places, 8, 1)[0]:
        assert len({place.sigma >= 0.7 for place in one.places}) == 1


def test_a_ramp_reaches_the_table(model):
    attention = attending("0 fp8 x1 heads", head_table())
    ramp, grid = Ramp(steps=4, stages=2, fp8_after=6), latent_grid(LATENT)
    early, late, over = (ramp.at(attention, step, grid) for step in (0, 4, 6))
    assert early.density(grid, 0.5) == 1.0 and outputs(model, early) == pytest.approx(outputs(model, DENSE), abs=1e-5)
    assert late == attending("0 bf16 - heads", head_table()) and over == attention
    assert over.density(grid, 0.5) == pytest.approx(np.mean(DENSITY))


@pytest.mark.parametrize("words", ONLINE)
def test_what_is_decided_online_is_measured(words):
    model = make_model(2)
    seen: list[float] = []
    attention = attending(f"0.95 dense\n0 fp8 x1 {words}")
    state = attention_state(model)
    note = state.note
    state.note = lambda density: (seen.append(float(density)), note(density))
    _, report = sample(model, shape=LATENT, seeds=[1, 2], text=inputs()[2][0], steps=3, attention=attention, cfg=2.0)
    assert attention.density(GRID, 0.5) is None and len(seen) == 2 * 2 * 2  # steps, branches, layers
    assert [step["density"] for step in report] == pytest.approx([1, np.mean(seen[:4]), np.mean(seen[4:])])
    assert min(seen) > 0 and max(seen) <= 1


@pytest.mark.parametrize("words", ["heads", *ONLINE])
def test_compiled_blocks_are_equal_and_measure_nothing(words):
    attention = attending(f"0 fp8 x1 {words}", head_table(WORDS[:2]))
    plain, compiled = make_model(2), make_model(2)
    torch._dynamo.reset()
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    out, expected = gradients(plain, attention)
    again, found = gradients(compiled, attention)
    assert torch.equal(out, again)
    for name, grad in expected.items():  # sums may go in another order
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-8, name
    assert attention_state(compiled).online_density is None
    measured = validate(compiled, random_samples(2), sigmas=(0.5,), attention=attention).density
    assert measured == (pytest.approx(np.mean(DENSITY[:2])) if words == "heads" else None)


def test_configurations_read_and_check_their_table(run_config, table_file, tmp_path):
    config = run_config()
    assert config.attention.resolved().table == head_table()
    (tmp_path / "run.toml").write_text(to_toml(config))
    again = load_config(tmp_path / "run.toml")
    assert again == config and again.attention.table == head_table()
    check_fits(config, WanShape(dim=256, ffn_dim=64, layers=4, text_dim=16))
    with pytest.raises(
        ConfigError, match=r"attention\.heads: the head table is for 4 layers of 2 heads, this model has 5"
    ):
        check_fits(config, WanShape(dim=256, ffn_dim=64, layers=5, text_dim=16))
    with pytest.raises(ConfigError, match=r"attention\.heads: the head table is for 4 layers"):
        fit(run_config(model__layers=2), random_samples(2), progress=None)
    dense = config.attention.model_copy(update={"schedule": "dense"})  # as the demo's control
    assert dense.table is None and dense.resolved().table is None


def test_mistakes_with_tables_are_sentences(run_config, tmp_path):
    missing = {"schedule": "0 fp8 x1 heads", "heads": str(tmp_path / "no.json")}
    with pytest.raises(ConfigError, match=r"attention: heads: there is no file .*no\.json; check the path"):
        run_config(attention=missing)
    (tmp_path / "bad.json").write_text('{"kind": "fpsattention head table"')
    with pytest.raises(ConfigError, match=r"attention: heads: bad\.json: line 1, column .* damaged"):
        run_config(attention={**missing, "heads": str(tmp_path / "bad.json")})
    with pytest.raises(ConfigError, match=r"but there is no head table; set attention\.heads to its JSON file$"):
        run_config(attention={"schedule": "0 fp8 x1 heads"})
    with pytest.raises(ConfigError, match=r"the schedule never says 'heads'; write it where the table shall be used"):
        run_config(attention={**missing, "schedule": "0 fp8 x1 all 2 2"})


def test_a_base_brings_its_table(run_config, model, tmp_path):
    attention = attending("0 fp8 x1 heads", head_table())
    carried = export(model, tmp_path / "carried.safetensors", attention=attention, grid=GRID)
    plain = export(model, tmp_path / "plain.safetensors")
    section = {"schedule": "0.5 dense\n0 fp8 x1 heads"}
    config = run_config(model={"path": str(carried)}, attention=section)
    assert config.attention.heads is None and config.attention.table == head_table()
    assert config.attention.resolved().table == head_table()
    with pytest.raises(ConfigError, match=r"or model.path to a file that carries one \(plain.safetensors does not\)"):
        run_config(model={"path": str(plain)}, attention=section)
    assert run_config(model={"path": str(plain)}, attention={"schedule": "dense"}).attention.table is None


def test_evaluations_take_a_file_s_table_or_one_of_their_own(model, tmp_path):
    attention = attending("0 fp8 x1 heads", head_table())
    path = export(model, tmp_path / "m.safetensors", attention=attention, grid=GRID)
    file = write_head_table(tmp_path / "searched.json", replace(head_table(TOLD_APART[1]), schedule=attention.schedule))
    carries = ModelFile("m", path, read_header(path))
    given = ["file", f"searched={file}", "late=0.5 dense;0 fp8 x1 heads", "window=0 fp8 x1 all 2 2"]
    dense, own, searched, late, window = make_methods([carries], given)
    assert dense.attention.schedule.is_dense
    assert own.attention.table == late.attention.table == head_table() and own.attention.tile == TILE
    assert searched.attention.table == head_table(TOLD_APART[1]) and window.attention.table is None
    plain = ModelFile("p", export(model, tmp_path / "p.safetensors"), None)
    tile = make_methods([plain], [f"searched={file}"])[1].attention
    assert (tile.slots, tile.tile, tile.table) == (SLOTS, TILE, head_table(TOLD_APART[1]))
    with pytest.raises(EvaluationError, match=r"says 'heads', but p\.safetensors carries no head table"):
        make_methods([plain], ["late=0 fp8 x1 heads"])
    other = write_head_table(tmp_path / "other.json", head_table((("full", "skip", "full"),) * 2))
    with pytest.raises(EvaluationError, match="for 2 layers of 3 heads, this model has 4 of 2"):
        make_methods([carries], [f"other={other}"])


def test_inspect_and_the_dry_run_tell_the_table(run_config, model, tmp_path):
    attention = attending("0 fp8 x1 heads", head_table())
    path = export(model, tmp_path / "m.safetensors", attention=attention, grid=GRID)
    file = write_head_table(tmp_path / "t.json", head_table(WORDS, TOLD_APART[1], untils=(0.5, 0.0)))
    told = dict(describe(path))
    assert told["heads"] == "4 layers of 2 heads, on 3x4x4 tokens in tiles of 1x2x2"
    lines = [value for _, value in describe(path)]
    assert f"mean density there: {np.mean(DENSITY):.1%} to sigma 0" in lines and " 37.5%  full" in lines
    lines = [value for _, value in describe(file)]
    assert (
        "head table" in lines and f"mean density there: {np.mean(DENSITY):.1%} to sigma 0.5, 16.7% to sigma 0" in lines
    )
    config = run_config()
    lines, mean = phase_table(config, GRID, 2)
    assert all("heads" in line and f"density {np.mean(DENSITY):6.1%}" in line for line in lines)
    assert mean == pytest.approx(np.mean(DENSITY))
    assert "rebuilt by rule" in phase_table(config, TokenGrid(3, 6, 6), 2)[0][-1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_that_share_tokens_have_their_heads_patterns(run_config, tmp_path):
    """Heads are dealt out over processes, and with them their patterns and what is decided online."""
    found = {}
    for processes in (1, 2):
        scenarios = []
        for name, schedule in (("table", "0.6 fp8 x1 heads\n0 bf16 - heads"), ("online", "0 fp8 x1 svg 0.3")):
            where = tmp_path / f"{name}-{processes}"
            config = run_config(
                schedule, optim={"lr": 1e-4, "steps": 3, "batch": 2, "global_batch": 4, "warmup": 1},
                output={"dir": str(where), "name": "x", "report": False}, parallel={"sequence": processes},
                checkpoint={"dir": str(where / "checkpoints"), "every": 0}, flow={"text_dropout": 0.4},
            )  # fmt: skip
            scenarios.append({"name": name, "config": config.model_dump(mode="json", exclude_none=True)})
        file = tmp_path / f"{processes}.json"
        file.write_text(json.dumps(scenarios))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes > 1 else []
        done = subprocess.run(
            [sys.executable, *launcher, str(CHILD), str(file)], capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found[processes] = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("found ")]
    for one, two in zip(found[1], found[2], strict=True):
        for key in ("losses", "validation"):
            assert two[key] == pytest.approx(one[key], rel=1e-5), (one["name"], key)
        assert two["densities"] == pytest.approx(one["densities"], rel=1e-6) and max(one["densities"]) < 1
        assert two["norms"] == pytest.approx(one["norms"], rel=1e-3)
        assert two["sums"] == pytest.approx(one["sums"], rel=1e-4, abs=1e-6)
