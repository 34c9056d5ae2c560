"""The timestep-aware LoRA: what a hub computes, what its router learns, and that the export is what was trained."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from fpsattention.kernels.msfp.file import read_msfp
from fpsattention.kernels.timestep_lora import read_timestep_lora
from fpsattention.training.assemble import assemble
from fpsattention.training.config import ConfigError, TaloraSection
from fpsattention.training.distributed import World
from fpsattention.training.dry_run import describe_run
from fpsattention.training.export_file import export_run
from fpsattention.training.export_saved import export_state
from fpsattention.training.flow import Flow
from fpsattention.training.loop import fit
from fpsattention.training.model import load_model, random_model
from fpsattention.training.names import ModelError, WanShape
from fpsattention.training.quantized import is_quantized, load_quantized, quantized_layers
from fpsattention.training.router import even_router, fold, straight_through
from fpsattention.training.talora import (
    TaloraLinear,
    add_talora,
    has_talora,
    load_timestep_lora,
    routes_now,
    talora_off,
    talora_state,
    whole_router,
)
from fpsattention.training.weights.write import write_model
from torch.utils.checkpoint import checkpoint

from . import msfp_parts

SECTION = TaloraSection(hub=3, rank=4, alpha=8.0)
FLOW = Flow(3.0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return msfp_parts.write(tmp_path_factory.mktemp("msfp") / "small.safetensors")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """The file in full precision that the MSFP file was made of."""
    file = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    write_model(file, msfp_parts.SHAPE, msfp_parts.small_state().items(), dtype="fp32")
    return file


def adapted(path, section=SECTION):
    model = load_quantized(path)
    add_talora(model, section, FLOW, 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("talora_B"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def forward(model, *sigmas):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 16, 3, 4, 6, generator=generator).expand(len(sigmas), -1, -1, -1, -1)
    text = torch.randn(1, 3, 16, generator=generator).expand(len(sigmas), -1, -1)
    return model(x, 1000 * torch.tensor(sigmas), text, return_dict=False)[0]


def test_it_starts_as_the_base_and_trains_only_its_own(path):
    base, model = load_quantized(path).requires_grad_(False), load_quantized(path)
    add_talora(model, SECTION, FLOW, 0)
    with torch.no_grad():
        assert torch.equal(forward(model, 0.9, 0.2), forward(base, 0.9, 0.2))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters()} - {n for n, _ in base.named_parameters()}
    assert sum("router" in name for name in trained) == 4 and len(trained) == 4 + 2 * 2 * len(SECTION.targets)
    state = talora_state(model)
    assert state["blocks.1.ffn.2"][0].shape == (3, 4, 64) and state["blocks.1.ffn.2"][1].shape == (3, 128, 4)
    first = state["blocks.0.ffn.0"][0]
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, state["blocks.1.ffn.0"][0])


def test_a_layer_adds_the_chosen_lora_of_the_unquantized_input(path):
    model = adapted(path)
    layer, base = model.blocks[0].ffn.net[2], quantized_layers(load_quantized(path))["blocks.0.ffn.2"]
    sigmas = (0.95, 0.7, 0.1)
    with torch.no_grad():
        forward(model, *sigmas)
        chosen = model.talora_route.chosen
        assert chosen == whole_router(model).at(torch.tensor(sigmas)).tolist() == [2, 1, 0]
        x = 3 * torch.randn(3, 5, 64)
        out = layer(x)
    for sample, index in enumerate(chosen):
        low = x[sample].double() @ layer.talora_A[index].double().T
        want = base(x)[sample].double() + 2.0 * low @ layer.talora_B[index].double().T
        torch.testing.assert_close(out[sample].double(), want, rtol=1e-5, atol=1e-5)


def test_training_computes_the_same_as_sampling_and_off_is_the_base(path):
    model, base = adapted(path), load_quantized(path).requires_grad_(False)
    for sigmas in ((0.9, 0.3), (0.6, 0.6)):
        trained = forward(model, *sigmas)
        assert trained.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(forward(model, *sigmas), trained, rtol=1e-4, atol=1e-5)
            assert (trained - forward(base, *sigmas)).norm() > 0.01 * trained.norm()
        with talora_off(model), torch.no_grad():
            assert torch.equal(forward(model, *sigmas), forward(base, *sigmas))


def test_only_the_chosen_lora_and_the_router_get_gradients(path):
    model = adapted(path)
    forward(model, 0.95).square().mean().backward()
    grad = model.blocks[0].attn1.to_q.talora_A.grad
    assert grad[2].any() and not grad[:2].any()
    assert model.talora_router.second.weight.grad.any() and model.talora_router.first.weight.grad.any()


def test_the_straight_through_gradient_is_the_softmaxs():
    logits = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
    seen = torch.randn(5, 3, dtype=torch.float64)
    gate = straight_through(logits)
    assert set(gate.flatten().tolist()) == {0.0, 1.0} and torch.equal(gate.argmax(1), logits.argmax(1))
    (gate * seen).sum().backward()
    for row in range(5):
        e = [torch.exp(v) for v in logits[row].detach()]
        p = [v / sum(e) for v in e]
        for i in range(3):
            want = sum(p[j] * (float(i == j) - p[i]) * seen[row, j] for j in range(3))
            torch.testing.assert_close(logits.grad[row, i], want)


def recomputed(run):
    return lambda *args, **kwargs: checkpoint(run, *args, use_reentrant=False, **kwargs)


@pytest.mark.parametrize("how", ["recomputed", "compiled"])
def test_recomputed_and_compiled_copies_give_the_same_gradients(path, how):
    torch._dynamo.reset()  # graphs of the same class that other tests compiled count against its limit
    model = adapted(path)
    other = copy.deepcopy(model)
    for block in other.blocks:
        if how == "recomputed":
            block.forward = recomputed(block.forward)
        else:
            block.compile(fullgraph=True, backend="aot_eager")
    for sigmas in ((0.9, 0.2), (0.1, 0.6)):  # another route through the same graph
        for one in (model, other):
            one.zero_grad()
            forward(one, *sigmas).square().mean().backward()
        for (name, p), (_, q) in zip(model.named_parameters(), other.named_parameters(), strict=True):
            if p.requires_grad:
                # Sums in another order move a number over a rounding border now and then.
                assert (q.grad - p.grad).norm() <= 1e-2 * p.grad.norm() + 1e-8, name
    with torch.no_grad():
        torch.testing.assert_close(forward(other, 0.9), forward(model, 0.9), rtol=1e-2, atol=1e-2)


def test_it_goes_on_any_wan_and_computes_in_bf16():
    model = random_model(WanShape(128, 64, 2, text_dim=16), 0)
    add_talora(model, TaloraSection(hub=1, rank=2, targets=("ffn.0",)), FLOW, 0)
    assert isinstance(model.blocks[1].ffn.net[0].proj, TaloraLinear) and not is_quantized(model)
    with torch.autocast("cpu", torch.bfloat16):
        forward(model, 0.5, 0.4).float().square().mean().backward()


@pytest.mark.parametrize("hub", [1, 2, 5, 16])
@pytest.mark.parametrize("flow", [Flow(3.0), Flow(8.0), Flow(1.0, "uniform")])
def test_the_router_starts_as_an_even_split(hub, flow):
    router = even_router(hub, 64, 256, flow, 0)
    drawn = router.at(torch.tensor(flow.quantiles(2000)))
    assert (torch.bincount(drawn, minlength=hub) / 2000 - 1 / hub).abs().max() < 0.01
    assert [index for _, index in fold(router).rows] == list(range(hub))[::-1]


def test_a_folded_route_says_what_the_router_says():
    for seed in range(6):
        router = even_router(4, 32, 256, FLOW, seed)
        with torch.no_grad():  # a route of many stretches
            router.second.weight += 3 * torch.randn(
                router.second.weight.shape, generator=torch.Generator().manual_seed(seed)
            )
        table, draw = fold(router), random.Random(seed)
        sigmas = [draw.random() for _ in range(3000)] + [0.0, 1.0]
        sigmas += [min(1.0, max(0.0, until + away)) for until, _ in table.rows for away in (-3e-6, 1e-8)]
        live = router.at(torch.tensor(sigmas, dtype=torch.float64)).tolist()
        wrong = [s for s, index in zip(sigmas, live) if table.at(s) != index]
        near = [s for s in wrong if min(abs(s - until) for until, _ in table.rows) < 3e-8]
        assert wrong == near
    assert len(table.rows) > 4


def test_the_router_finds_the_border_of_two_regimes():
    """The target is one matrix below sigma 0.45 and its opposite above; the even split of Flow(3) is at 0.75."""
    border, generator = 0.45, torch.Generator().manual_seed(0)
    model = random_model(WanShape(128, 64, 1, text_dim=16), 0)
    add_talora(model, TaloraSection(hub=2, rank=8, targets=("ffn.0",)), FLOW, 0)
    start = fold(whole_router(model)).rows
    assert len(start) == 2 and abs(start[0][0] - 0.75) < 0.03
    layer, route = model.blocks[0].ffn.net[0].proj, model.talora_route
    target = torch.randn(64, 4, generator=generator) @ torch.randn(4, 128, generator=generator) / 128**0.5
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3, betas=(0.9, 0.99))
    for _ in range(1500):
        sigma = torch.tensor([FLOW.draw_sigma(generator) for _ in range(8)])
        x = torch.randn(8, 16, 128, generator=generator)
        route.take(model.talora_router, 1000 * sigma, 8)
        sign = torch.where(sigma < border, -1.0, 1.0)[:, None, None]
        added = layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias)
        loss = (added - sign * (x @ target.T)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = fold(whole_router(model)).rows
    assert len(rows) == 2 and rows[0][1] == start[0][1]
    assert abs(rows[0][0] - border) < 0.03, rows


@pytest.fixture
def run_config(make_config, path, wan):
    """A run with everything: MSFP base, hub, teacher, denoising factor, FPSAttention's schedule."""

    def make(**changes):
        changes = {
            "model": {"path": str(path)}, "talora": {"hub": 2, "rank": 4}, "ema": {"decay": 0.5},
            "loss": {"teacher": 0.5, "teacher_path": str(wan), "weighting": "denoising-factor"},
            "checkpoint__background": False, "activation_checkpointing": "full", **changes,
        }  # fmt: skip
        return make_config(**{key: value for key, value in changes.items() if value is not None})

    return make


def test_a_run_with_everything_resumes_exactly_exports_and_comes_back(
    run_config, path, samples, tmp_path, weights_hash
):
    whole = run_config(checkpoint__dir=str(tmp_path / "whole"))
    straight = fit(whole, samples[:4], samples[4:], progress=None)
    config = run_config(checkpoint__dir=str(tmp_path / "resumed"))
    resumed = fit(config, samples[:4], samples[4:], resume=str(tmp_path / "whole" / "step-000004"), progress=None)
    assert resumed.step == straight.step == 6
    record = straight.records[0]
    assert record["weighted_loss"] != record["loss"] and len(record["routes"]) == 64

    file = export_run(whole, straight.model, 6, None)
    hub = read_timestep_lora(file)
    assert hub.base == read_msfp(path).fingerprint and (hub.hub, hub.rank) == (2, 4)
    assert hub.header.schedule == whole.attention.parsed() and hub.header.step == 6
    export_state(tmp_path / "whole" / "step-000006", tmp_path / "again.safetensors")
    again = read_timestep_lora(tmp_path / "again.safetensors")
    assert again.table == hub.table
    for (name, first, second), (other, a, b) in zip(hub.tensors(), again.tensors(), strict=True):
        assert name == other and torch.equal(first, a) and torch.equal(second, b)
    assert weights_hash(resumed.model) == weights_hash(straight.model)


def test_the_exported_hub_computes_what_the_live_router_does_to_the_bit(run_config, path, samples, tmp_path):
    config = run_config(output__dtype="fp32", optim__steps=3, talora__router_lr=30.0)
    live = fit(config, samples[:4], progress=None).model
    with torch.no_grad():  # as much as many steps would
        for layer in (module for module in live.modules() if isinstance(module, TaloraLinear)):
            layer.talora_B.add_(0.05 * torch.randn(layer.talora_B.shape, generator=torch.Generator().manual_seed(1)))
    file = export_run(config, live, 3, None)
    loaded = load_model(path)
    load_timestep_lora(loaded, file)
    assert not any(p.requires_grad for p in loaded.parameters())
    sigmas = torch.linspace(1, 0.001, 60).tolist()
    from fpsattention.training.attention import attention_state
    from fpsattention.training.sparse import DENSE

    with torch.no_grad():
        for sigma in sigmas:
            outs = []
            for model in (live.eval(), loaded.eval()):
                with attention_state(model).step(DENSE, sigma, (16, 3, 4, 6)):
                    outs.append(forward(model, sigma))
            assert torch.equal(*outs), sigma
    assert len(set(routes_now(live))) == 2


BAD = {
    "both adapters": ({"lora": {}}, "lora and talora exclude each other; remove one of the two sections"),
    "fp8 linears": ({"fp8_linears": {}}, "talora and fp8_linears exclude each other"),
    "a hub of none": ({"talora": {"hub": 0}}, "talora.hub is 0"),
    "too large a hub": ({"talora": {"hub": 17}}, "talora.hub is 17"),
    "an unknown target": ({"talora": {"targets": ["attn1.to_q"]}}, "talora.targets: no block has .* 'attn1.to_q'"),
    "no teacher": ({"loss": {"teacher": 1.0}}, "no teacher of its own; set loss.teacher_path"),
    "an ordinary LoRA": ({"talora": None, "lora": {}}, r"use \[talora\] in place of \[lora\], with hub = 1"),
    "FP8 on MSFP": (
        {"talora": None, "fp8_linears": {"skip_first": 0, "skip_last": 0}},
        r"quantized already; remove \[fp8_linears\]",
    ),
    "FP8 out": ({"talora": None, "output__dtype": "fp8"}, "output.dtype is the precision of what is not packed"),
    "an unknown weighting": ({"loss": {"weighting": "snr"}}, "loss.weighting is 'snr'"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_does_not_go_together_is_one_sentence(run_config, which):
    changes, words = BAD[which]
    with pytest.raises(ConfigError, match=words) as error:
        assemble(run_config(**changes), World(), torch.device("cpu"))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=words):
        describe_run(run_config(**changes))


def test_a_quantized_teacher_is_refused(run_config, path):
    with pytest.raises(ConfigError, match=r"loss.teacher_path .* is an MSFP file too"):
        describe_run(run_config(loss={"teacher": 1.0, "teacher_path": str(path)}))


def test_a_hub_for_another_model_is_refused(run_config, path, samples, tmp_path, wan):
    config = run_config(optim__steps=3)
    file = export_run(config, fit(config, samples[:4], progress=None).model, 3, None)
    for model, words in (
        (random_model(WanShape(256, 64, 2, text_dim=16), 0), "128 -> 128 features, this one's is 256 -> 256"),
        (random_model(WanShape(128, 64, 1, text_dim=16), 0), "adapts blocks.1.*, which this one does not have"),
        (load_model(wan), "was trained on the quantized model [0-9a-f]{16}, this model is full precision"),
    ):
        with pytest.raises(ModelError, match=words):
            load_timestep_lora(model, file)
        assert not has_talora(model)
    with pytest.raises(ModelError, match="is not a timestep-aware LoRA"):
        load_timestep_lora(load_model(path), path)
