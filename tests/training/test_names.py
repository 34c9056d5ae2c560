"""Original names, diffusers' names, and which files are refused with which sentence."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from fpsattention.training.model import load_model, original_state, random_model
from fpsattention.training.names import PREFIX, ModelError, WanShape, original_names, read_shape
from safetensors.torch import save_file

SHAPE = WanShape(dim=128, ffn_dim=64, layers=2, text_dim=16)


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    return original_state(random_model(SHAPE, seed=3))


def test_names_and_shapes_are_those_of_the_model(original):
    assert {name: tuple(tensor.shape) for name, tensor in original.items()} == SHAPE.tensors()
    assert SHAPE.parameters == sum(tensor.numel() for tensor in original.values())
    assert len(set(original_names(SHAPE).values())) == len(original)


def test_parameter_count_of_the_published_1_3b():
    # 1.42 billion: what the published file of Wan2.1 T2V 1.3B holds.
    assert WanShape(dim=1536, ffn_dim=8960, layers=30).parameters == 1_418_996_800


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(original, tmp_path, prefix, dtype):
    path = tmp_path / "wan.safetensors"
    save_file({prefix + name: tensor.to(dtype) for name, tensor in original.items()}, path)
    assert read_shape(path) == SHAPE
    back = original_state(load_model(path), dtype)
    assert list(back) == list(SHAPE.tensors())
    assert all(torch.equal(back[name], original[name].to(dtype)) for name in original)


def test_random_weights_depend_on_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    models = [random_model(SHAPE, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    a, b, c = (model.blocks[0].attn1.to_q.weight for model in models)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_files_that_are_no_safetensors(tmp_path):
    text = tmp_path / "text.safetensors"
    text.write_text("not a model")
    short = tmp_path / "short.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    short.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 5)
    for path, word in ((text, "not a safetensors"), (short, "truncated"), (tmp_path / "none.safetensors", "no file")):
        with pytest.raises(ModelError, match=word):
            read_shape(path)


def test_a_base_with_a_newer_header_is_refused(tmp_path):
    path = tmp_path / "newer.safetensors"
    save_file({"head.modulation": torch.zeros(1, 2, 256)}, path, metadata={"fpsattention.version": "99"})
    with pytest.raises(ModelError, match="carries a v99 FPSAttention header"):
        read_shape(path)
