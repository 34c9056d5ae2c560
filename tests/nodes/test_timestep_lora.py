"""Timestep-aware LoRA without a host: which layers change for how long, what a batch of several sigmas gets, what is
recorded, and what it costs by count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fpsattention.kernels.timestep_lora import RouteTable, TimestepLora
from fpsattention.nodes.patch import PatchError
from fpsattention.nodes.timestep_lora_patch import (
    NO_SIGMA,
    SIGMA_NAN,
    Acting,
    Entry,
    adapted,
    apply_timestep_lora,
    find_layer,
    linear_layers,
)
from fpsattention.nodes.timestep_lora_record import KEY, LoraRecord, report_lines
from fpsattention.training.flops import forward_flops
from fpsattention.training.names import WanShape
from hypothesis import given
from hypothesis import strategies as st

from .fake_host import Patcher, WanModel

ROWS = ((0.8, 1), (0.3, 0), (0.0, 2))
LAYERS = {"blocks.0": (6, 5), "blocks.1": (5, 6)}


class Branch:
    """A low-rank sum in float64, written out."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor):
        self.first, self.second = first, second

    def add(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out + (x @ self.first.T) @ self.second.T


class Hub:
    """Three branches of rank 2 for every layer."""

    def __init__(self, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        self.branches = {
            name: [
                Branch(*(torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((2, a), (b, 2))))
                for _ in range(3)
            ]
            for name, (a, b) in LAYERS.items()
        }

    def branch(self, layer: str, index: int) -> Branch:
        return self.branches[layer][index]


class Model(torch.nn.Module):
    """Two linear layers, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in LAYERS.values()).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](torch.tanh(self.blocks[0](x)))


def entry(seed: int = 0, name: str = "a") -> Entry:
    file = TimestepLora(Path(f"{name}.safetensors"), RouteTable(ROWS), 3, 2, 1.0, LAYERS, None, "")
    return Entry(file, Hub(seed), name)


def acting(*entries: Entry) -> Acting:
    return Acting(entries, LoraRecord(tuple(e.name for e in entries)))


def merged(model: Model, x: torch.Tensor, *pairs: tuple[Entry, int]) -> torch.Tensor:
    """The same with merged weights."""
    for block, (name, layer) in enumerate(zip(LAYERS, model.blocks)):
        weight = layer.weight.detach().clone()
        for one, index in pairs:
            branch = one.hub.branch(name, index)
            weight += branch.second @ branch.first
        x = torch.nn.functional.linear(x if block == 0 else torch.tanh(x), weight, layer.bias)
    return x


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(1, 2), st.integers(1, 2))
def test_every_sample_gets_the_lora_of_its_sigma(sigmas, nodes, each):
    """Also where a layer sees several rows of each sample."""
    model, entries = Model(), [entry(seed) for seed in range(nodes)]
    x = torch.randn(len(sigmas) * each, 3, 6, dtype=torch.float64)
    a = acting(*entries)
    chosen = a.choose(sigmas)
    with torch.no_grad(), adapted(model, a.branches(chosen), len(chosen)):
        out = model(x)
    for sample, sigma in enumerate(sigmas):
        index = next(i for until, i in ROWS if sigma >= until - 1e-6)
        assert chosen[sample] == (index,) * nodes
        rows = slice(sample * each, (sample + 1) * each)
        torch.testing.assert_close(out[rows], merged(model, x[rows], *((e, index) for e in entries)))
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_of_somebody_else_is_used_and_comes_back():
    model, a = Model(), acting(entry())
    inner = model.blocks[0].forward
    model.blocks[0].forward = theirs = lambda x: inner(x) * 2
    with pytest.raises(RuntimeError, match="planted"), adapted(model, a.branches(a.choose([0.5])), 1):
        assert vars(model.blocks[0])["forward"] is not theirs and "forward" in vars(model.blocks[1])
        raise RuntimeError("planted")
    assert vars(model.blocks[0])["forward"] is theirs and "forward" not in vars(model.blocks[1])


def test_rows_that_cannot_be_told_apart_are_refused():
    model, a = Model(), acting(entry())
    chosen = a.choose([0.9, 0.1])
    said = pytest.raises(PatchError, match="mixes 2 sigmas, and a layer sees 3 rows")
    with said, adapted(model, a.branches(chosen), 2):
        model(torch.zeros(3, 6, dtype=torch.float64))
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_are_found_in_compiled_models_and_missed_in_words():
    model = Model()
    compiled = torch.compile(model)
    assert find_layer(compiled, "blocks.1") is model.blocks[1]
    model.blocks[0] = torch.compile(model.blocks[0])
    assert find_layer(compiled, "blocks.0") is model.blocks[0]._orig_mod
    assert linear_layers(compiled) == LAYERS
    with pytest.raises(PatchError, match=r"the layer blocks\.0\.ffn that a timestep-aware LoRA adapts is gone"):
        find_layer(model, "blocks.0.ffn")


def patched(*entries: Entry) -> tuple[Patcher, Model]:
    """The fake host's patcher with these nodes in a chain, around a small model."""
    patcher, model = Patcher(WanModel()), Model()
    for one in entries:
        patcher = apply_timestep_lora(patcher, one, object(), [f"{one.name} is for another base."])
    return patcher, model


def call(patcher: Patcher, model: Model, x: torch.Tensor, sigma) -> torch.Tensor:
    (wrapper,) = patcher.wrappers["apply_model"][KEY]

    class Executor:
        class_obj = SimpleNamespace(diffusion_model=model)

        def __call__(self, x, t):
            return model(x)

    return wrapper(Executor(), x, sigma)


def run(patcher: Patcher, kind: str) -> None:
    for callback in patcher.callbacks[kind][KEY]:
        callback(patcher)


def test_a_chain_has_one_wrapper_and_every_hub():
    one, other = entry(0, "one"), entry(1, "other")
    patcher, model = patched(one, other)
    assert len(patcher.get_additional_models_with_key(KEY)) == 2
    x = torch.randn(1, 6, dtype=torch.float64)
    out = call(patcher, model, x, torch.tensor([0.4]))
    torch.testing.assert_close(out, merged(model, x, (one, 0), (other, 0)))


def test_what_ran_is_told_in_words():
    patcher, model = patched(entry(0, "one"), entry(1, "two"))
    x = torch.zeros(1, 6, dtype=torch.float64)
    assert report_lines(patcher, None) == []
    for _ in range(2):
        run(patcher, "on_pre_run")
        for sigma in (1.0, 0.85, 0.5, 0.1):
            call(patcher, model, x, torch.tensor([sigma]))
        run(patcher, "on_cleanup")
    ran = "LoRA 1 at sigma 1.0000 to 0.8500 (2 steps), LoRA 0 at sigma 0.5000, LoRA 2 at sigma 0.1000"
    notes = ["note: one is for another base.", "note: two is for another base."]
    assert report_lines(patcher, None) == [*(f"timestep-aware LoRA {n}: {ran}" for n in ("one", "two")), *notes] * 2
    assert report_lines(patcher, {"7"}) == []
    assert report_lines(Patcher(WanModel()), None) == []


@pytest.mark.parametrize(("sigma", "words"), [(None, NO_SIGMA), (torch.tensor([float("nan")]), SIGMA_NAN)])
def test_without_a_sigma_nothing_acts_and_it_is_said_once(sigma, words, caplog):
    patcher, model = patched(entry())
    x = torch.randn(1, 6, dtype=torch.float64)
    run(patcher, "on_pre_run")
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(call(patcher, model, x, sigma), model(x))
    assert [record.getMessage() for record in caplog.records].count(f"Timestep-aware LoRA: {words}") == 1
    assert report_lines(patcher, None)[0] == "timestep-aware LoRA a: no model call was recorded"


SHAPES = {"1.3B": WanShape(1536, 8960, 30), "14B": WanShape(5120, 13824, 40)}
GRIDS = {"832x480x81": 21 * 30 * 52, "1280x720x81": 21 * 45 * 80}
# What an H200's data sheet says: operations a second in bf16 without sparsity, bytes a second.
OPERATIONS, BYTES = 989e12, 4.8e12


def test_what_a_branch_costs_by_count(show_at_end):
    """All ten linear layers of every block. Operations are next to nothing; bytes are what counts: a branch reads its
    layer's input, and reads and writes its output."""
    lines = []
    for (size, shape), (grid, n), rank in ((s, g, r) for s in SHAPES.items() for g in GRIDS.items() for r in (16, 32)):
        d, f, text = shape.dim, shape.ffn_dim, 512
        sizes = [(n, d, d)] * 6 + [(text, d, d)] * 2 + [(n, d, f), (n, f, d)]
        operations = shape.layers * sum(2 * rows * rank * (a + b) for rows, a, b in sizes)
        moved = shape.layers * sum(2 * rows * (a + 2 * rank + 2 * b) for rows, a, b in sizes)
        whole = forward_flops(shape, n)
        share, time = operations / whole, (moved / BYTES) / (whole / OPERATIONS)
        lines.append(
            f"Wan {size} {grid} rank {rank}: {operations / 1e12:.1f} of {whole / 1e12:.0f} TFLOP = {share:.2%}, "
            f"{moved / 1e9:.0f} GB = {moved / BYTES:.3f} s, {time:.1%} of a dense call at peak, {time / 2:.1%} at half"
        )
        assert share < 0.01 and 0.02 < time < 0.09
    show_at_end("what the side branches cost, by count", "\n".join(lines))
