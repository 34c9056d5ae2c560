"""ComfyUI's scaled FP8 in and out: its three spellings, what is exact about them, and what is refused."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from fpsattention.training.export_file import convert
from fpsattention.training.model import load_model, original_state
from fpsattention.training.names import PREFIX, ModelError
from fpsattention.training.weights import open_weights
from fpsattention.training.weights.write import is_quantized, quantization_marker, quantize
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .wan_files import SMALL, random_state, write_form

MARKER = json.dumps({"format": "float8_e4m3fn"})


@pytest.fixture(scope="module")
def scaled():
    """A small Wan in FP8 with scales that are no powers of two, and what it stands for, both by original name."""
    state = random_state(SMALL["t2v"])
    weights, scales, meant = {}, {}, {}
    for name, tensor in state.items():
        if is_quantized(name, tuple(tensor.shape)):
            scales[name] = tensor.abs().max() / 448 * 1.01
            weights[name] = (tensor / scales[name]).to(torch.float8_e4m3fn)
            meant[name] = weights[name].float() * scales[name]
        else:
            weights[name] = meant[name] = tensor.bfloat16()
    return weights, scales, meant


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("spelling", ["old", "table", "markers"])
def test_every_spelling_is_multiplied_out(tmp_path, scaled, spelling, prefix, caplog):
    weights, scales, meant = scaled
    tensors, metadata = {prefix + name: tensor for name, tensor in weights.items()}, None
    layers = {prefix + name.removesuffix(".weight"): scale for name, scale in scales.items()}
    if spelling == "old":
        tensors |= {f"{layer}.scale_weight": scale for layer, scale in layers.items()}
        tensors |= {f"{layer}.scale_input": torch.ones(()) for layer in layers}
        tensors[f"{prefix}scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    else:
        tensors |= {f"{layer}.weight_scale": scale.view(1) for layer, scale in layers.items()}
        if spelling == "table":
            metadata = {"_quantization_metadata": json.dumps({"layers": {n: json.loads(MARKER) for n in layers}})}
        else:
            tensors |= {
                f"{layer}.comfy_quant": torch.tensor(list(MARKER.encode()), dtype=torch.uint8) for layer in layers
            }
    path = tmp_path / "a.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata=metadata)
    with caplog.at_level(logging.INFO):
        opened = open_weights(path)
    assert opened.scaled and "scaled FP8 file" in caplog.text and opened.shape == SMALL["t2v"]
    back = original_state(load_model(path))
    assert all(torch.equal(back[name], meant[name].float()) for name in meant)
    rows = opened.read("blocks.1.ffn.net.0.proj.weight", slice(3, 7))
    assert torch.equal(rows, meant["blocks.1.ffn.0.weight"][3:7])


def test_scales_per_row(tmp_path, scaled):
    weights, _, meant = scaled
    name = "blocks.0.ffn.0.weight"
    scale = torch.rand(64, 1) + 0.5
    save_file({**meant, name: weights[name], f"{name}_scale": scale}, tmp_path / "a.safetensors")
    back = open_weights(tmp_path / "a.safetensors").read("blocks.0.ffn.net.0.proj.weight", slice(5, 9))
    assert torch.equal(back, weights[name][5:9].float() * scale[5:9])


def test_plain_fp8_is_read_with_a_warning(tmp_path, scaled, caplog):
    state = random_state(SMALL["t2v"])
    path = tmp_path / "a.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}, path)
    back = original_state(load_model(path))
    assert "plain FP8 weights" in caplog.text
    assert all(torch.equal(back[name], state[name].to(torch.float8_e4m3fn).float()) for name in state)


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        ({"blocks.0.ffn.0.comfy_quant": list(b'{"format": "nvfp4"}')}, None, "is quantized as nvfp4, which cannot be"),
        ({"blocks.0.ffn.0.comfy_quant": list(b"xx")}, None, "is quantized as something unreadable"),
        ({}, {"_quantization_metadata": '{"layers": {"a": {"format": "mxfp8"}}}'}, "layer a is quantized as mxfp8"),
        ({}, {"_quantization_metadata": "{}"}, "its _quantization_metadata cannot be read"),
        ({"blocks.0.ffn.0.weight_scale": torch.ones(3, 2)}, None, "neither one number nor one per row"),
        ({"blocks.0.nothing.weight_scale": torch.ones(1)}, None, "of a weight that it lacks"),
        ({"blocks.0.ffn.2.weight_scale": torch.ones(1)}, None, "has a scale but is F32, not FP8"),
    ],
)
def test_what_a_scale_does_not_undo_is_refused(tmp_path, scaled, change, metadata, message):
    tensors = random_state(SMALL["t2v"]) | {"blocks.0.ffn.0.weight": scaled[0]["blocks.0.ffn.0.weight"]}
    for name, value in change.items():
        tensors[name] = torch.tensor(value, dtype=torch.uint8) if isinstance(value, list) else value
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match=message) as caught:
        open_weights(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_an_exported_fp8_file_has_the_hosts_form(tmp_path):
    state = random_state(SMALL["i2v"])
    path = convert(write_form("original", tmp_path, state), tmp_path / "fp8.safetensors", "fp8")
    tensors = load_file(path)
    for name, tensor in state.items():
        if is_quantized(name, tuple(tensor.shape)):
            layer = name.removesuffix(".weight")
            assert tensors[name].dtype == torch.float8_e4m3fn and tensors[f"{name}_scale"].shape == ()
            said = json.loads(bytes(tensors[f"{layer}.comfy_quant"].tolist()))
            assert said == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
            error = (tensors[name].float() * tensors[f"{name}_scale"] - tensor).norm() / tensor.norm()
            assert error < 0.03
        else:
            assert torch.equal(tensors[name], tensor.bfloat16()), name
    # Read back, written again: nothing changes any more (a weight that filled half of its range may change its scale).
    again = original_state(load_model(convert(path, tmp_path / "again.safetensors", "fp8")))
    first = original_state(load_model(path))
    assert all(torch.equal(again[name], first[name]) for name in first)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert b"full_precision" not in bytes(quantization_marker(True).tolist())


@pytest.mark.parametrize("largest", [448.0, 447.9, 1.0, 3e-5, 0.0, 1e-38, 3e38])
def test_scales_are_the_smallest_powers_of_two_that_fit(largest):
    weight = torch.tensor([[largest, -largest / 3], [largest / 7, 0.0]])
    stored, scale = quantize(weight)
    assert torch.frexp(scale)[0] == 0.5 and stored.float().isfinite().all()
    if largest > 1e-30:
        assert float(scale) * 448 >= largest and float(scale) * 224 < largest
        assert torch.allclose(stored.float() * scale, weight, rtol=0.0625)
    for kind in (torch.bfloat16, torch.float32):  # multiplying out is exact in the types that the host computes in
        assert torch.equal((stored.to(kind) * scale.to(kind)).float(), stored.float() * scale)
