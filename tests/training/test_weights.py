"""Weights in every form that people have: the same model, bit by bit; only the rows that are asked for are read."""

from __future__ import annotations

import copy

import pytest
import torch
from fpsattention.kernels.checkpoint import write_streamed
from fpsattention.training.export_file import convert
from fpsattention.training.model import build, load_model, original_state
from fpsattention.training.names import WanShape, original_names, read_shape
from fpsattention.training.weights import gathered, load_into, open_weights
from safetensors import safe_open

from .wan_files import FORMS, SMALL, random_state, write_form

PUBLISHED = {
    # kind: dim, ffn, layers -> tensors, parameters: Wan2.1 as published (T2V 1.3B, the others 14B)
    "t2v-1.3b": (("t2v", 1536, 8960, 30), 825, 1_418_996_800),
    "t2v-14b": (("t2v", 5120, 13824, 40), 1095, 14_288_491_584),
    "i2v-14b": (("i2v", 5120, 13824, 40), 1303, 16_394_878_784),
    "flf-14b": (("flf", 5120, 13824, 40), 1304, 16_395_536_704),
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_model(tmp_path, form, kind):
    state = random_state(SMALL[kind])
    path = write_form(form, tmp_path, state)
    weights = open_weights(path)
    assert weights.shape == read_shape(path) == SMALL[kind] and weights.shape.kind == kind
    assert list(weights.original.values()) == list(SMALL[kind].tensors())
    back = original_state(load_model(path))
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("form", ["comfyui", "original shards", "diffusers pipeline"])
def test_a_round_trip_without_training_is_bit_identical(tmp_path, form, kind):
    state = random_state(SMALL[kind], dtype=torch.bfloat16)
    path = write_form(form, tmp_path / "in", state)
    out = convert(path, tmp_path / "out.safetensors")
    with safe_open(out, "pt") as file:
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(name), state[name]) for name in state)


@pytest.mark.parametrize("name", PUBLISHED)
def test_key_lists_of_the_published_models(name):
    (kind, dim, ffn, layers), tensors, parameters = PUBLISHED[name]
    shape = WanShape.of_kind(kind, dim, ffn, layers)
    assert (len(shape.tensors()), shape.parameters) == (tensors, parameters)
    with torch.device("meta"):
        model = build(shape)
    names = original_names(shape)
    built = {names[name]: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert built == shape.tensors()


def test_rows_are_read_alone(tmp_path):
    state = random_state(SMALL["t2v"])
    weights = open_weights(write_form("diffusers", tmp_path, state))
    whole = weights.read("blocks.0.ffn.net.0.proj.weight")
    part = weights.read("blocks.0.ffn.net.0.proj.weight", slice(10, 20), torch.bfloat16)
    assert torch.equal(whole, state["blocks.0.ffn.0.weight"])
    assert torch.equal(part, whole[10:20].bfloat16()) and part.untyped_storage().nbytes() == part.nbytes


def test_plain_models_on_meta_and_in_memory_are_filled(tmp_path):
    state = random_state(SMALL["i2v"])
    weights = open_weights(write_form("original", tmp_path, state))
    with torch.device("meta"):
        empty = build(weights.shape)
    wanted = copy.deepcopy(load_model(weights.path))
    halves = build(weights.shape).to(torch.bfloat16)
    for model in (empty, halves):
        load_into(model, weights)
        rope = {name: table.device.type for name, table in model.rope.named_buffers()}
        assert set(rope.values()) == {"cpu"}
        for (name, parameter), want in zip(model.named_parameters(), wanted.parameters()):
            assert torch.equal(parameter, want.to(parameter.dtype)), name
    for name, table in wanted.rope.named_buffers():
        assert torch.equal(getattr(empty.rope, name), table)
    assert {p.dtype for p in halves.parameters()} == {torch.bfloat16}


def test_gathered_names_are_clean_under_wrappers_and_adapters(tmp_path):
    from fpsattention.training.config import LoraSection
    from fpsattention.training.lora import add_lora
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    state = random_state(SMALL["t2v"])
    model = load_model(write_form("original", tmp_path, state))
    add_lora(model, LoraSection(rank=2), seed=0)
    model.blocks[0] = checkpoint_wrapper(model.blocks[0])
    model.blocks[1] = torch.compile(model.blocks[1])
    found = dict(gathered(model, torch.bfloat16))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name].bfloat16()) for name in state)


def test_files_have_one_hash(tmp_path):
    from fpsattention.training.files import file_sha256

    state = random_state(SMALL["t2v"])
    one, shards = (write_form(form, tmp_path, state) for form in ("original", "original shards"))
    assert open_weights(one).sha256 == file_sha256(one)
    first = open_weights(shards).sha256
    assert len(first) == 64 and first == open_weights(shards).sha256 != open_weights(one).sha256


def test_streamed_files_are_aligned_and_whole(tmp_path):
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "wide": torch.randn(2, 3),
        "number": torch.tensor(2.5),
        "half": torch.randn(5).bfloat16(),
        "small": torch.randn(7).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 4),
    }
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    path = tmp_path / "a.safetensors"
    write_streamed(path, layout, tensors.items(), extra_metadata={"x": "y"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "x": "y"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name).float(), tensor.float()), name
    before = path.read_bytes()
    for wrong in ({"wide": tensors["wide"]}, tensors | {"more": torch.zeros(1)}, tensors | {"odd": torch.zeros(3)}):
        with pytest.raises(ValueError, match="announced"):
            write_streamed(path, layout, wrong.items())
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
