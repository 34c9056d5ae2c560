"""Adapters: the start is the base, names stay, files go out and come back, and every mistake is one sentence."""

from __future__ import annotations

import copy

import pytest
import torch
from fpsattention.training.config import ConfigError, LoraSection
from fpsattention.training.lora import LoraLinear, add_lora, init_lora, load_lora, lora_off, lora_state
from fpsattention.training.model import build, random_model
from fpsattention.training.names import ModelError, WanShape
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

SHAPE = WanShape(128, 256, 2, text_dim=16)
SECTION = LoraSection(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def base():
    model = random_model(SHAPE, 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def adapted(base):
    model = copy.deepcopy(base)
    add_lora(model, SECTION, 0)
    return model


def moved(model):
    """Give the zeros of the adapters values, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def forward(model, dtype=None):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 16, 3, 4, 6, generator=generator)
    text = torch.randn(1, 3, 16, generator=generator)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        return model(x, torch.tensor([500.0]), text, return_dict=False)[0]


def recomputed(forward):
    def run(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def test_the_start_is_the_base_to_the_bit(base, adapted):
    for dtype in (None, torch.bfloat16):
        assert torch.equal(forward(adapted, dtype), forward(base, dtype))


def test_names_of_the_base_stay_and_adapters_alone_train(base, adapted):
    before, after = dict(base.named_parameters()), dict(adapted.named_parameters())
    new = {name for name in after if name not in before}
    assert set(before) <= set(after) and all(name.endswith((".lora_A", ".lora_B")) for name in new)
    assert {name for name, p in after.items() if p.requires_grad} == new
    assert len(new) == 2 * 2 * len(SECTION.targets)
    assert after["blocks.1.ffn.net.0.proj.lora_A"].shape == (4, 128)
    assert after["blocks.1.ffn.net.0.proj.lora_B"].shape == (256, 4)
    assert all(after[name].dtype is torch.float32 for name in new)


def test_the_seed_and_the_name_decide_the_start(base):
    def start(seed, targets):
        model = copy.deepcopy(base)
        add_lora(model, LoraSection(rank=4, targets=targets), seed)
        return lora_state(model)

    one, fewer, other = start(0, ("self_attn.q", "ffn.0")), start(0, ("ffn.0",)), start(1, ("ffn.0",))
    name = "diffusion_model.blocks.0.ffn.0.lora_A.weight"
    assert torch.equal(one[name], fewer[name]) and not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[name.replace("blocks.0", "blocks.1")])


def test_the_output_is_that_of_merged_weights(base, adapted):
    moved(adapted)
    merged = copy.deepcopy(base)
    with torch.no_grad():
        for name, module in adapted.named_modules():
            if isinstance(module, LoraLinear):
                merged.get_submodule(name).weight += 2.0 * module.lora_B @ module.lora_A
    want = forward(merged)
    assert (want - forward(base)).norm() / want.norm() > 0.03
    torch.testing.assert_close(forward(adapted), want, rtol=1e-4, atol=1e-5)


def test_off_is_the_base_and_on_again_afterwards(base, adapted):
    moved(adapted)
    on = forward(adapted)
    with pytest.raises(KeyError), lora_off(adapted):
        assert torch.equal(forward(adapted), forward(base))
        with lora_off(adapted):
            pass
        assert torch.equal(forward(adapted), forward(base))
        raise KeyError
    assert torch.equal(forward(adapted), on)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_narrow_base_trains_wide_adapters(base, dtype):
    model = copy.deepcopy(base)
    for block in model.blocks:
        for p in block.parameters():
            if p.ndim == 2:
                p.data = p.data.to(torch.bfloat16)
    add_lora(model, LoraSection(rank=4, targets=("self_attn.q", "self_attn.v", "self_attn.o")), 0)
    for layer in (layer for block in model.blocks for layer in block.modules() if isinstance(layer, LoraLinear)):
        x = torch.randn(1, 5, layer.in_features)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            out = layer(x)
        assert out.dtype is (dtype or torch.float32)
        out.float().sum().backward()
        assert layer.lora_B.grad.dtype is torch.float32 and layer.lora_B.grad.any()
        assert layer.weight.grad is None


@pytest.mark.parametrize("how", ["recomputed", "compiled", "compiled and recomputed"])
def test_recomputed_and_compiled_blocks_give_the_same(adapted, how):
    moved(adapted)
    other = copy.deepcopy(adapted)
    for block in other.blocks:
        if "recomputed" in how:
            block.forward = recomputed(block.forward)
        if "compiled" in how:
            block.compile(fullgraph=True, backend="aot_eager")
    grads = []
    for model in (adapted, other):
        forward(model).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-3, atol=1e-6)
    with torch.no_grad(), lora_off(other), lora_off(adapted):
        torch.testing.assert_close(forward(other), forward(adapted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(forward(other), forward(adapted), rtol=1e-4, atol=1e-5)


def test_a_model_on_meta_is_filled_later(adapted):
    with torch.device("meta"):
        model = build(SHAPE)
    add_lora(model, SECTION, 0)
    model.to_empty(device="cpu")
    init_lora(model, 0)
    want = lora_state(adapted)
    assert all(torch.equal(tensor, want[name]) for name, tensor in lora_state(model).items())


def test_the_file_has_comfyuis_names_and_comes_back(base, adapted, tmp_path):
    moved(adapted)
    state = lora_state(adapted)
    assert len(state) == 3 * 2 * len(SECTION.targets)
    assert list(state)[:3] == [
        f"diffusion_model.blocks.0.self_attn.q.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha")
    ]
    assert state["diffusion_model.blocks.1.ffn.2.alpha"] == 8.0
    path = tmp_path / "lora.safetensors"
    save_file(state, path)
    for model in (copy.deepcopy(base), copy.deepcopy(base)):
        load_lora(model, path)
        assert torch.equal(forward(model), forward(adapted))
        assert {name for name, p in model.named_parameters() if p.requires_grad} == {
            name for name, p in adapted.named_parameters() if p.requires_grad
        }
        load_lora(model, path)
        assert torch.equal(forward(model), forward(adapted))


def test_the_files_type_is_chosen(adapted):
    state = lora_state(adapted, torch.bfloat16)
    assert {tensor.dtype for name, tensor in state.items() if "lora_" in name} == {torch.bfloat16}
    assert {tensor.dtype for name, tensor in state.items() if name.endswith("alpha")} == {torch.float32}


def test_an_unknown_target_is_said_with_those_that_are_there(base):
    with pytest.raises(ConfigError, match=r"no block has a linear layer 'attn1.to_q'; they have cross_attn.k, .*ffn.0"):
        add_lora(copy.deepcopy(base), LoraSection(targets=("attn1.to_q",)), 0)


def test_adapters_are_added_once(adapted):
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(adapted, SECTION, 0)


BAD = {
    "no file": (None, "cannot be read as a safetensors file"),
    "a whole model": (lambda s: {"blocks.0.self_attn.q.weight": torch.zeros(2, 2)}, "is no LoRA in ComfyUI's names"),
    "empty": (lambda s: {}, "is no LoRA in ComfyUI's names .*: it is empty"),
    "half": (lambda s: _without(s, "blocks.0.ffn.0.lora_B.weight"), "blocks.0.ffn.0 lacks its lora_B"),
    "an unknown layer": (
        lambda s: {k.replace("ffn.0", "ffn.1"): v for k, v in s.items()},
        "blocks.0.ffn.1, which is no",
    ),
    "ranks apart": (lambda s: s | {_name("ffn.0", "A"): torch.zeros(3, 128)}, "which make no low-rank matrix"),
    "another width": (lambda s: s | {_name("ffn.0", "A"): torch.zeros(4, 64)}, "64 -> 256 features, .* 128 -> 256"),
}


def _name(layer, which):
    return f"diffusion_model.blocks.0.{layer}.lora_{which}.weight"


def _without(state, end):
    return {name: tensor for name, tensor in state.items() if not name.endswith(end)}


@pytest.mark.parametrize("which", BAD)
def test_a_bad_file_is_one_sentence_and_changes_nothing(base, adapted, tmp_path, which):
    make, sentence = BAD[which]
    path = tmp_path / "lora.safetensors"
    if make is not None:
        save_file(make(lora_state(adapted)), path)
    model = copy.deepcopy(base)
    with pytest.raises(ModelError, match=sentence) as error:
        load_lora(model, path)
    assert "\n" not in str(error.value)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"rank": 2}, "has rank 4, the model's has 2; set lora.rank to 4"), ({"targets": ("ffn.0",)}, "set lora.targets")],
)
def test_a_file_that_does_not_fit_the_runs_adapters(base, adapted, tmp_path, changes, sentence):
    path = tmp_path / "lora.safetensors"
    save_file(lora_state(moved(adapted)), path)
    model = copy.deepcopy(base)
    add_lora(model, LoraSection(**({"rank": 4} | changes)), 0)
    before = {name: tensor.clone() for name, tensor in lora_state(model).items()}
    with pytest.raises(ModelError, match=sentence):
        load_lora(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lora_state(model).items())
