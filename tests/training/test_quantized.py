"""An MSFP file in training: values are the codes', inputs are rounded, gradients are those of the clipped estimator."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from fpsattention.kernels.msfp.file import read_msfp
from fpsattention.kernels.msfp.formats import FloatFormat
from fpsattention.kernels.msfp.inputs import InputQuantizer
from fpsattention.kernels.msfp.ops import dequantize
from fpsattention.kernels.msfp.ops import linear as packed_product
from fpsattention.training.attention import attention_state
from fpsattention.training.export_file import convert, export_run
from fpsattention.training.export_saved import export_state
from fpsattention.training.loop import fit
from fpsattention.training.lora import load_lora
from fpsattention.training.model import for_inference, keep_full_precision, load_model
from fpsattention.training.names import ModelError
from fpsattention.training.quantized import (
    QuantizedLinear,
    load_quantized,
    quantized_layers,
    round_input,
    train_quantized,
)
from fpsattention.training.sparse import DENSE
from fpsattention.training.state import SnapshotError
from fpsattention.training.weights import open_weights
from safetensors.torch import load_file, save_file

from . import msfp_parts
from .wan_files import SMALL, random_state


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return msfp_parts.write(tmp_path_factory.mktemp("msfp") / "small.safetensors")


@pytest.fixture
def model(path):
    return load_quantized(path)


def forward(model, sigma=0.5):
    generator = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 16, 3, 4, 6, generator=generator), torch.randn(1, 3, 16, generator=generator)
    return model(x, torch.tensor([1000 * sigma]), text, return_dict=False)[0]


def test_weights_are_the_codes_values_and_layers_compute_as_packed_ones(path, model):
    file, layers = read_msfp(path), quantized_layers(model)
    assert layers.keys() == file.layers.keys() and len(layers) == 2 * len(msfp_parts.LAYERS)
    for name, weight in file.packed():
        layer, x = layers[name], 2 * torch.randn(3, 5, weight.columns)
        assert torch.equal(layer.weight, dequantize(weight, torch.float32))
        want = packed_product(x, weight, layer.bias, file.layers[name].input)
        assert torch.equal(layer(x), want)
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(x)
        narrow = packed_product(x.bfloat16(), weight, layer.bias.bfloat16(), file.layers[name].input)
        assert torch.equal(half, narrow)


def test_what_is_not_packed_is_as_stored_and_inputs_are_rounded(path, model):
    weights = open_weights(path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights.read(name, dtype=torch.float32))
    plain = copy.deepcopy(model)
    for layer in quantized_layers(plain).values():
        layer.packed_layer = replace(layer.packed_layer, input=None)
    out, want = forward(model), forward(plain)
    assert 0.01 < (out - want).norm() / want.norm() < 1


def test_rows_are_read_alone(path):
    weights = open_weights(path)
    for name in ("blocks.0.ffn.net.2.weight", "blocks.0.attn1.to_v.weight", "blocks.1.attn1.to_q.weight"):
        whole = weights.read(name)
        assert torch.equal(weights.read(name, slice(5, 9)), whole[5:9])


@pytest.mark.parametrize(
    ("name", "mode", "maxval", "zero"),
    [("e2m1", "static", 1.5, 0.0), ("ue2m2", "static", 2.0, -0.3), ("e2m1", "dynamic", 0.5, 0.0),
     ("ue1m3", "dynamic", 0.7, 0.0), ("e3m0", "dynamic", 1.0, 0.0)],
)  # fmt: skip
def test_an_inputs_gradient_is_one_inside_and_none_where_it_is_clamped(name, mode, maxval, zero):
    quantizer = InputQuantizer(FloatFormat.parse(name), mode, maxval, zero)
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(3)).requires_grad_()
    seen = torch.randn(7, 33, generator=torch.Generator().manual_seed(4))
    out = round_input(x, quantizer)
    assert torch.equal(out, quantizer.reference(x.detach()))
    (out * seen).sum().backward()
    for row in range(7):
        values = x[row].detach().tolist()
        low, high = (-maxval, maxval) if quantizer.form.signed else (zero, zero + maxval)
        if mode == "dynamic":
            least, most = min(values), max(values)
            size = max(abs(v) for v in values)
            low, high = (-size, size) if quantizer.form.signed else (least, most)
            low, high = (low * maxval, high * maxval) if quantizer.form.signed else (low, low + (high - low) * maxval)
        for column, value in enumerate(values):
            if min(abs(value - low), abs(value - high)) > 1e-5 or maxval == 1:
                inside = maxval == 1 or low <= value <= high
                assert x.grad[row, column] == (seen[row, column] if inside else 0)


def test_a_masters_gradient_stops_where_its_codes_end(model):
    layer = quantized_layers(model)["blocks.0.ffn.0"]
    before = layer.weight.detach().clone()
    train_quantized(model)
    assert torch.equal(layer.rounded(), before), "codes' values are rounded to themselves"
    with torch.no_grad():
        layer.weight += 0.2 * layer.scale * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, layer.in_features)
    layer(x).sum().backward()
    ends = layer.scale * layer.packed_layer.weight.form.top
    inside = layer.weight.detach().abs() <= ends
    assert 0 < (~inside).sum() < inside.sum()
    want = layer.packed_layer.input.reference(x).sum(0).expand_as(layer.weight)
    torch.testing.assert_close(layer.weight.grad, want * inside, rtol=1e-4, atol=1e-4)
    assert len((layer.rounded() / layer.scale)[0].unique()) <= 15


def test_copies_casts_and_full_precision_wrappers_keep_what_a_layer_is(model):
    want = forward(model)
    keep_full_precision(model)
    assert torch.equal(forward(copy.deepcopy(model)), want)
    ready = for_inference(copy.deepcopy(model), "bf16", torch.device("cpu"))
    layer = quantized_layers(ready)["blocks.0.ffn.2"]
    assert layer.weight.dtype is torch.bfloat16 and layer.scale.dtype is torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = forward(ready).float()
    assert 0 < (half - want).norm() / want.norm() < 0.2


def test_time_and_text_layers_may_be_quantized_too(tmp_path):
    path = tmp_path / "all.safetensors"
    state = msfp_parts.small_state()
    msfp_parts.write_state(path, state, outside=("time_embedding.2", "time_projection.1", "text_embedding.0"))
    model = load_quantized(path)
    want = forward(model)
    keep_full_precision(model)
    assert isinstance(model.condition_embedder.time_proj, QuantizedLinear)
    assert torch.equal(forward(model), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert forward(model).isfinite().all()


def test_any_other_file_is_refused_in_one_sentence(path, tmp_path):
    ordinary = tmp_path / "wan.safetensors"
    save_file(random_state(SMALL["t2v"]), ordinary)
    assert not quantized_layers(load_model(ordinary))
    with pytest.raises(ModelError, match=r"is no MSFP file; make one with `python -m training.quantize`"):
        load_quantized(ordinary)


def test_scales_that_are_not_finite_are_named(path, tmp_path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["msfp_model.blocks.1.ffn.0.scale"][3] = float("nan")
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(ModelError, match=r"the scales of blocks.1.ffn.0 are not finite"):
        load_model(tmp_path / "bad.safetensors")


def train(make_config, path, samples, **changes):
    config = make_config(
        model={"path": str(path)}, optim__lr=3e-3, checkpoint__background=False, attention__schedule="dense", **changes
    )
    return config, fit(config, samples[:4], samples[4:], progress=None)


def test_all_weights_train_and_come_out_as_an_msfp_file_again(make_config, path, samples, tmp_path):
    config, result = train(make_config, path, samples, output__dtype="fp32")
    trained = result.model
    assert all(layer.master for layer in quantized_layers(trained).values())
    out = export_run(config, trained, 6, None)
    before, after = read_msfp(path), read_msfp(out)
    assert after.layers == before.layers and after.fingerprint != before.fingerprint
    for (name, old), (_, new) in zip(before.packed(), after.packed(), strict=True):
        assert torch.equal(old.scale, new.scale)
        if "cross_attn" not in name:  # texts are zeros here, and their keys all the same
            assert not torch.equal(old.codes, new.codes), name
    loaded = load_quantized(out)
    with torch.no_grad(), attention_state(trained.eval()).step(DENSE, 0.5, (16, 3, 4, 6)):
        want = forward(trained.requires_grad_(False))
    with torch.no_grad(), attention_state(loaded.eval()).step(DENSE, 0.5, (16, 3, 4, 6)):
        assert torch.equal(forward(loaded.requires_grad_(False)), want)
    again = export_state(tmp_path / "checkpoints" / "step-000006", tmp_path / "again.safetensors")
    assert load_file(again).keys() == load_file(out).keys()
    assert all(torch.equal(tensor, load_file(out)[name]) for name, tensor in load_file(again).items())
    with pytest.raises(
        SnapshotError, match="is the state of an MSFP model, which is exported as bf16 or fp32, not fp8"
    ):
        export_state(tmp_path / "checkpoints" / "step-000006", tmp_path / "no.safetensors", "fp8")


def test_a_state_without_its_base_is_not_exported(make_config, path, samples, tmp_path):
    base = tmp_path / "base.safetensors"
    base.write_bytes(path.read_bytes())
    train(make_config, base, samples, optim__steps=3)
    base.unlink()
    with pytest.raises(ModelError, match=r"the export needs the model that the run started from: .*check the path"):
        export_state(tmp_path / "checkpoints" / "step-000003", tmp_path / "out.safetensors")


def test_it_is_no_other_kind_of_file(path, tmp_path):
    with pytest.raises(ModelError, match="is an MSFP file, whose layers also quantize their inputs"):
        convert(path, tmp_path / "wan.safetensors")
    assert not (tmp_path / "wan.safetensors").exists()


def test_an_ordinary_lora_is_refused(path, model, tmp_path):
    names = ("lora_A.weight", "lora_B.weight")
    sizes = ((2, 128), (64, 2))
    lora = {f"diffusion_model.blocks.0.ffn.0.{name}": torch.zeros(size) for name, size in zip(names, sizes)}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(ModelError, match=r"is an ordinary LoRA, .* train a timestep-aware LoRA \(\[talora\]\) on it"):
        load_lora(model, tmp_path / "lora.safetensors")
