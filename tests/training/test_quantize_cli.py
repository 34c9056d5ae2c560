"""``python -m training.quantize`` end to end on small models, and one sentence for everything that cannot be done."""

from __future__ import annotations

import json

import pytest
import torch
from fpsattention.kernels.checkpoint import Header, read_metadata
from fpsattention.kernels.msfp.file import read_msfp
from fpsattention.kernels.msfp.weights import dequantize_reference
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.lora import linear_layers
from fpsattention.training.model import load_model, random_model
from fpsattention.training.names import WanShape
from fpsattention.training.quantize.cli import main
from fpsattention.training.quantize.samples import watched
from fpsattention.training.weights.write import write_model
from safetensors.torch import load_file, save_file

CLIPS = ["--size", "64x64x5", "--steps", "2", "--cfg", "1", "--seeds", "0", "--tokens", "64"]


def written(model, path, header: Header | None = None):
    from fpsattention.training.model import model_shape, original_state

    write_model(path, model_shape(model), original_state(model).items(), dtype="fp32", header=header)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A small T2V model whose head is not zero, with a schedule in its header."""
    model = random_model(WanShape.of_kind("t2v", 128, 256, 2), 3)
    for name, parameter in model.named_parameters():
        if name.startswith("proj_out") or name.endswith(".bias"):  # else no text gives inputs of zeros
            torch.nn.init.normal_(parameter, std=0.1)
    header = Header(Schedule.parse("0 bf16 - all 50% 50%"))
    return written(model, tmp_path_factory.mktemp("base") / "small.safetensors", header)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
@pytest.mark.parametrize("inputs, method, granularity, bits", [
    ("static", "msfp", "32", 4), ("dynamic", "signed", "channel", 6), ("none", "int", "tensor", 8)
])  # fmt: skip
def test_the_file_holds_what_was_asked_for(base, tmp_path, capsys, inputs, method, granularity, bits):
    out = tmp_path / "q.safetensors"
    asked = ["--inputs", inputs, "--method", method, "--granularity", granularity, "--bits", str(bits)]
    code, text, _ = run(
        capsys, "--model", str(base), "--out", str(out), *asked, "--input-bits", str(bits),
        *(CLIPS if inputs != "none" else []),
    )  # fmt: skip
    assert code == 0 and str(out) in text
    file, whole = read_msfp(out), load_model(base)
    assert len(file.layers) == 2 * 10 and all(layer.weight.form.bits == bits for layer in file.layers.values())
    assert file.header.schedule.format() == Header.from_metadata(read_metadata(base)[0]).schedule.format()
    for name, packed in file.packed():
        weight = linear_layers(whole)[name][1].weight.detach()
        error = float((dequantize_reference(packed) - weight).norm() / weight.norm())
        assert error < {4: 0.15, 6: 0.05, 8: 0.02}[bits]
    plain = dict(file.tensors())
    assert "head.modulation" in plain and plain["blocks.0.ffn.0.bias"].dtype == torch.float32
    found = json.loads((tmp_path / "q-report" / "layers.json").read_text())
    assert len(found["layers"]) == 20 and found["made"]["method"] == method
    signs = {layer.input and layer.input.form.signed for layer in file.layers.values()}
    if inputs == "none":
        assert signs == {None} and not list((tmp_path / "q-report").glob("block*.png"))
        return
    assert (tmp_path / "q-report" / "block-01.png").stat().st_size > 10_000
    assert {layer.input.mode for layer in file.layers.values()} == {inputs}
    if method == "msfp":  # after GELU unsigned, elsewhere as the data are
        assert not any(file.layers[f"blocks.{i}.ffn.2"].input.form.signed for i in range(2))
        assert file.layers["blocks.0.self_attn.q"].input.form.signed
    else:
        assert signs == {True}


def test_nothing_is_replaced_unasked(base, tmp_path, capsys):
    out = tmp_path / "q.safetensors"
    out.write_bytes(b"mine")
    code, _, err = run(capsys, "--model", str(base), "--out", str(out), "--inputs", "none")
    assert code == 2 and "is there already" in err and out.read_bytes() == b"mine"
    code, _, _ = run(capsys, "--model", str(base), "--out", str(out), "--inputs", "none", "--overwrite", "--no-plots")
    assert code == 0 and read_msfp(out).layers
    for form in ("msfp", "nvfp4"):
        again = tmp_path / "again.safetensors"
        code, _, err = run(capsys, "--model", str(out), "--out", str(again), "--form", form)
        assert code == 2 and "is quantized already" in err and not again.exists()


@pytest.mark.parametrize("arguments, said", [
    (["--granularity", "48"], "does not divide into groups of 48"),
    (["--granularity", "4"], "at least 8"),
    (["--granularity", "²"], "--granularity is '²'"),
    (["--granularity", "row"], "write tensor, channel, or a group's size"),
    (["--keep", "ffn.1"], "no block has such a layer"),
    (["--keep-blocks", "1"], "leave nothing of 2 blocks"),
    (["--keep-blocks", "-1"], "at least 0"),
    (["--size", "64x64x6"], "6"),
    (["--steps", "0"], "1 to 1000"),
    (["--cfg", "nan"], "--cfg is nan"),
    (["--tokens", "0"], "--tokens is 0"),
    (["--out", "x.bin"], ".safetensors"),
    (["--form", "nvfp4", "--bits", "6"], "--bits says nothing to --form nvfp4"),
    (["--inputs", "none", "--steps", "3"], "--steps says nothing to --inputs none"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(base, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "--model", str(base), *arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_full_disk_is_said_before_the_work(base, tmp_path, capsys, monkeypatch):
    full = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("fpsattention.kernels.checkpoint.shutil.disk_usage", lambda _: full)
    out = tmp_path / "new" / "q.safetensors"
    code, text, err = run(capsys, "--model", str(base), "--out", str(out))
    assert code == 2 and text == "" and "1 MiB free" in err and not out.parent.exists()


def test_prompts_that_nobody_reads_are_said(base, tmp_path, capsys):
    out = tmp_path / "q.safetensors"
    code, text, err = run(capsys, "--model", str(base), "--out", str(out), "--prompts", "a fox", "--no-plots", *CLIPS)
    assert code == 0 and "without --text-encoder prompts are not read" in err and "- of" not in text


def test_models_that_are_none(tmp_path, capsys, base):
    code, _, err = run(capsys, "--model", str(tmp_path / "no.safetensors"))
    assert code == 2 and "there is no such file" in err
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert run(capsys, "--model", str(tmp_path / "other.safetensors"))[0] == 2
    code, _, err = run(capsys, "--model", str(base), "--out", str(base), "--overwrite")
    assert code == 2 and "is the model that is read" in err


def test_weights_that_are_not_finite(base, tmp_path, capsys):
    tensors = load_file(base)
    tensors["blocks.1.ffn.0.weight"][3, 5] = float("inf")
    save_file(tensors, tmp_path / "broken.safetensors")
    out = tmp_path / "q.safetensors"
    code, _, err = run(capsys, "--model", str(tmp_path / "broken.safetensors"), "--out", str(out), "--inputs", "none")
    assert code == 2 and "blocks.1.ffn.0: 1 of its 32768 weights are not finite" in err and not out.exists()
    code, _, err = run(capsys, "--model", str(tmp_path / "broken.safetensors"), "--out", str(out), *CLIPS)
    assert code == 2 and "calibration" in err and "not finite" in err and not out.exists()
    tensors = load_file(base)
    tensors["blocks.1.self_attn.q.bias"][7] = float("nan")  # in a tensor that is not packed
    save_file(tensors, tmp_path / "broken.safetensors")
    code, _, err = run(capsys, "--model", str(tmp_path / "broken.safetensors"), "--out", str(out), "--inputs", "none")
    assert code == 2 and "blocks.1.self_attn.q.bias: 1 of its 128 numbers are not finite" in err
    assert [file.name for file in tmp_path.iterdir()] == ["broken.safetensors"]


def test_models_of_odd_widths(tmp_path, capsys):
    path, out = tmp_path / "odd.safetensors", tmp_path / "q.safetensors"
    written(random_model(WanShape(128, 66, 1), 3), path)
    asked = ["--model", str(path), "--out", str(out), "--granularity", "channel", "--inputs", "none", "--no-plots"]
    code, _, err = run(capsys, *asked, "--bits", "6")
    assert code == 2 and "--bits 6: layer blocks.0.ffn.2: a row of 66 codes" in err and "--keep ffn.2" in err
    assert run(capsys, *asked, "--bits", "6", "--keep", "ffn.2")[0] == 0
    written(random_model(WanShape(128, 64, 1, text_dim=16), 3), path)
    code, _, err = run(capsys, "--model", str(path), "--out", str(tmp_path / "other.safetensors"), *CLIPS)
    assert code == 2 and "text embeddings of width 16" in err and "--inputs none" in err


def test_image_models_are_quantized_without_calibration_only(tmp_path, capsys):
    model = random_model(WanShape.of_kind("i2v", 128, 256, 1), 3)
    path, out = written(model, tmp_path / "i2v.safetensors"), tmp_path / "q.safetensors"
    code, _, err = run(capsys, "--model", str(path), "--out", str(out))
    assert code == 2 and "image-to-video" in err and "--inputs none" in err
    assert run(capsys, "--model", str(path), "--out", str(out), "--inputs", "none", "--no-plots")[0] == 0
    assert "blocks.0.cross_attn.k_img" in read_msfp(out).layers


def test_samples_are_of_all_calls_and_count_what_is_broken():
    layer = torch.nn.Linear(4, 2)
    with watched({"x": layer}, 3) as found:
        layer(torch.arange(40.0).reshape(2, 5, 4))
        layer(torch.full((1, 2, 4), -1.0))
    samples = found["x"]
    assert samples.tokens.shape == (5, 4) and (samples.low, samples.high) == (-1.0, 39.0) and samples.numbers == 48
    assert not layer._forward_pre_hooks
    with watched({"x": layer}, 3) as found:
        layer(torch.full((3, 4), 2.0))
        layer(torch.full((1, 4), float("nan")))
    assert found["x"].broken == 4 and found["x"].constant_channels == 4
