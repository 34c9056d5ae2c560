"""MSFP files: what is written comes back, and every damaged header gets one sentence."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from fpsattention.kernels.checkpoint import Header, HeaderError, read_metadata
from fpsattention.kernels.msfp.file import (
    PREFIX,
    MsfpFile,
    PackedLayer,
    fingerprint_of,
    is_msfp,
    read_msfp,
    write_msfp,
)
from fpsattention.kernels.msfp.formats import FloatFormat
from fpsattention.kernels.msfp.inputs import InputQuantizer
from fpsattention.kernels.msfp.weights import PackedWeight, WeightFormat, dequantize_reference, quantize_weight
from fpsattention.kernels.schedule import Schedule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NORM, BIAS = "blocks.0.norm.weight", "blocks.0.ffn.0.bias"


def quantizer(name: str, mode: str = "static", maxval: float = 3.0, zero: float = 0.0) -> InputQuantizer:
    return InputQuantizer(FloatFormat.parse(name), mode, maxval, zero)


def layer(name: str, granularity: str | int, columns: int, entry: InputQuantizer | None = None) -> PackedLayer:
    return PackedLayer(WeightFormat(FloatFormat.parse(name), granularity), columns, entry)


LAYERS = {
    "blocks.0.ffn.0": layer("e2m1", 16, 32, quantizer("e2m1")),
    "blocks.0.ffn.2": layer("ue2m2", "channel", 64, quantizer("ue2m2", zero=-0.17)),
    "blocks.1.ffn.0": layer("e2m3", "tensor", 32, quantizer("e3m2", "dynamic", 1.0)),
    "head": layer("e4m3fn", "channel", 32),
}
ROWS = {"blocks.0.ffn.0": 64, "blocks.0.ffn.2": 32, "blocks.1.ffn.0": 4, "head": 3}


def packed(name: str, entry: PackedLayer, rows: int, dtype: torch.dtype) -> PackedWeight:
    generator = torch.Generator().manual_seed(len(name) + rows)
    matrix = torch.randn(rows, entry.columns, generator=generator)
    shape = entry.weight.scale_shape(rows, entry.columns)
    scale = ((torch.rand(shape, generator=generator) + 0.5) / entry.weight.form.top).to(dtype)
    zero = None if entry.weight.form.signed else -torch.rand(shape, generator=generator).to(dtype)
    return quantize_weight(matrix, entry.weight, scale, zero)


def written(path, dtype=torch.float32, layers=LAYERS, header=None) -> dict[str, PackedWeight]:
    weights = {name: packed(name, entry, ROWS[name], dtype) for name, entry in layers.items()}
    plain = {NORM: torch.arange(32.0), BIAS: torch.ones(64, dtype=torch.bfloat16)}
    write_msfp(
        path, layers, ROWS, {name: (t.dtype, tuple(t.shape)) for name, t in plain.items()},
        [*plain.items(), *weights.items()],
        scale_dtype=dtype, fingerprint="0123456789abcdef", header=header, facts={"trainer": "1"},
    )  # fmt: skip
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_gives_everything_back(tmp_path, dtype):
    header = Header(Schedule.parse("0 dense"), trainer="t")
    path = tmp_path / "model.safetensors"
    weights = written(path, dtype, header=header)
    found = read_msfp(path)
    assert isinstance(found, MsfpFile) and found.layers == LAYERS and found.rows == ROWS
    assert found.header == header and found.fingerprint == "0123456789abcdef" and found.facts["trainer"] == "1"
    assert found.shapes() == {
        NORM: (32,), BIAS: (64,), "blocks.0.ffn.0.weight": (64, 32), "blocks.0.ffn.2.weight": (32, 64),
        "blocks.1.ffn.0.weight": (4, 32), "head.weight": (3, 32),
    }  # fmt: skip
    plain = dict(found.tensors())
    assert set(plain) == {NORM, BIAS} and torch.equal(plain[NORM], torch.arange(32.0))
    back = dict(found.packed())
    assert set(back) == set(weights)
    for name, weight in back.items():
        assert weight.format == weights[name].format and weight.scale.dtype == dtype
        assert torch.equal(weight.codes, weights[name].codes)
        assert torch.equal(dequantize_reference(weight), dequantize_reference(weights[name]))
    metadata, tensors = read_metadata(path)
    assert is_msfp(metadata)
    assert all(name.startswith(PREFIX) for name in tensors), "no stock loader finds a Wan in it"
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_four_bits_take_half_a_byte(tmp_path):
    path = tmp_path / "model.safetensors"
    entry = layer("e2m1", 64, 4096)
    weight = PackedWeight(
        torch.zeros(256, 2048, dtype=torch.uint8), torch.ones(256, 64, dtype=torch.bfloat16), None, entry.weight, 4096
    )
    write_msfp(
        path, {"l": entry}, {"l": 256}, {}, [("l", weight)], scale_dtype=torch.bfloat16, fingerprint=""
    )  # fmt: skip
    assert abs(path.stat().st_size - 256 * 4096 * 4.25 / 8) < 2000


def test_the_fingerprint_tells_models_apart(tmp_path):
    weights = written(tmp_path / "model.safetensors")
    scales = {name: weight.scale for name, weight in weights.items()}
    first = fingerprint_of(LAYERS, scales)
    assert first == fingerprint_of(dict(reversed(LAYERS.items())), scales) and len(first) == 16
    changed = {**scales, "head": scales["head"] * 1.5}
    others = {**LAYERS, "head": layer("e4m3fn", "channel", 32, quantizer("e4m3"))}
    assert len({first, fingerprint_of(LAYERS, changed), fingerprint_of(others, scales)}) == 3


def test_what_was_not_announced_is_not_written(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = packed("head", LAYERS["head"], 3, torch.float32)
    for tensors in ([], [("head", weight), ("x", torch.ones(1))]):
        with pytest.raises(ValueError):
            write_msfp(
                path, {"head": LAYERS["head"]}, ROWS, {}, tensors, scale_dtype=torch.float32, fingerprint=""
            )  # fmt: skip
    assert not os.listdir(tmp_path)


# --- damage


def split(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path, entries: dict, data: bytes) -> None:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def one_sentence(message: str) -> str:
    assert message.endswith(".") and "\n" not in message and len(message) < 500, message
    return message


def refused(path) -> str:
    with pytest.raises(HeaderError) as caught:
        read_msfp(path)
    message = one_sentence(str(caught.value))
    assert message.startswith(path.name)
    return message


def edited(change, name="blocks.0.ffn.0"):
    """Return a damage that changes what the header says about a layer."""

    def damage(entries: dict) -> None:
        table = json.loads(entries["__metadata__"]["msfp.layers"])
        change(table[name])
        entries["__metadata__"]["msfp.layers"] = json.dumps(table)

    return damage


def weight(**values):
    return edited(lambda entry: entry["weight"].update(values))


def inputs(value, name="blocks.0.ffn.0"):
    return edited(lambda entry: entry.update(input=value), name)


def meta(**values):
    return lambda entries: entries["__metadata__"].update({f"msfp.{key}": value for key, value in values.items()})


def tensor(name: str, **values):
    return lambda entries: entries[PREFIX + name].update(values)


def without(name: str):
    return lambda entries: entries.pop(PREFIX + name)


def renamed(old: str, new: str):
    return lambda entries: entries.update({new: entries.pop(PREFIX + old)})


FFN = "blocks.0.ffn.0"
STATIC = {"format": "e2m1", "mode": "static", "maxval": 1.0}
DAMAGES = {
    "unknown-format": (weight(format="nf4"), "'nf4' is no format"),
    "format-of-7-bits": (weight(format="e3m3"), "has 7 bits"),
    "format-missing": (weight(format=None), "'None' is no format"),
    "format-number": (weight(format=4), "'4' is no format"),
    "group-does-not-divide": (weight(granularity=24), "does not divide into groups of 24"),
    "group-tiny": (weight(granularity=2), "granularity is '2'"),
    "group-negative": (weight(granularity=-16), "granularity is '-16'"),
    "group-true": (weight(granularity=True), "granularity is 'True'"),
    "granularity-unknown": (weight(granularity="row"), "granularity is 'row'"),
    "other-group": (weight(granularity=8), "scale is F32 (64, 2), it must be F32 or BF16 of shape (64, 4)"),
    "columns-zero": (weight(columns=0), "its columns are '0'"),
    "columns-text": (weight(columns="32"), "its columns are '32'"),
    "columns-odd": (weight(columns=33), "does not fill its bytes"),
    "columns-other": (weight(columns=64), "codes are U8 (64, 16), those of 64 columns"),
    "columns-huge": (weight(columns=10**4000), "codes are U8 (64, 16)"),
    "signed-becomes-unsigned": (weight(format="ue2m2"), "has no zero points"),
    "unsigned-becomes-signed": (
        edited(lambda entry: entry["weight"].update(format="e2m1"), "blocks.0.ffn.2"),
        "the layer is signed and has none",
    ),
    "weight-list": (edited(lambda entry: entry.update(weight=[1])), "its weight is '[1]'"),
    "weight-missing": (edited(lambda entry: entry.pop("weight")), "its weight is 'None'"),
    "input-text": (inputs("e2m1"), "an input quantizer is 'e2m1'"),
    "input-unknown-format": (inputs({**STATIC, "format": "e9m9"}), "e9m9"),
    "input-unknown-mode": (inputs({**STATIC, "mode": "auto"}), "mode is 'auto'"),
    "input-unknown-key": (inputs({**STATIC, "rotation": 1}), "'rotation'"),
    "input-maxval-missing": (inputs({"format": "e2m1", "mode": "static"}), "maxval is 'None'"),
    "input-maxval-nan": (inputs({**STATIC, "maxval": float("nan")}), "maxval is nan"),
    "input-maxval-zero": (inputs({**STATIC, "maxval": 0}), "maxval is 0"),
    "input-maxval-huge": (inputs({**STATIC, "maxval": 10**400}), "maxval is '1000"),
    "input-zero-missing": (inputs({**STATIC, "format": "ue2m2"}), "has no zero point"),
    "input-zero-of-signed": (inputs({**STATIC, "zero": -0.1}), "zero point -0.1"),
    "input-zero-inf": (inputs({**STATIC, "format": "ue2m2", "zero": -float("inf")}), "zero is '-inf', not a number"),
    "newer": (meta(version="2"), "v2, this version reads up to v1; update the node pack"),
    "version-missing": (lambda e: e["__metadata__"].pop("msfp.version"), "version ''"),
    "version-zero": (meta(version="0"), "version '0'"),
    "version-text": (meta(version="one"), "version 'one'"),
    "version-digit": (meta(version="²"), "version '²'"),
    "version-long": (meta(version="9" * 5000), "version '999"),
    "layers-missing": (lambda e: e["__metadata__"].pop("msfp.layers"), "cannot be read"),
    "layers-broken": (meta(layers='{"a": '), "cannot be read"),
    "layers-deep": (meta(layers='{"a":' * 100_000), "cannot be read"),
    "layers-long-number": (meta(layers='{"a": ' + "9" * 5000 + "}"), "cannot be read"),
    "layers-list": (meta(layers="[]"), "no table of layers"),
    "layers-of-text": (meta(layers='{"a": "b"}'), "no table of layers"),
    "layers-emptied": (meta(layers="{}"), "not described in the header"),
    "strange-tensor": (renamed(NORM, "blocks.0.norm.weight"), "has the tensor blocks.0.norm.weight"),
    "codes-missing": (without(f"{FFN}.codes"), f"layer {FFN} has no codes"),
    "scales-missing": (without(f"{FFN}.scale"), f"layer {FFN} has no scales"),
    "zeros-missing": (without("blocks.0.ffn.2.zero"), "layer blocks.0.ffn.2 has no zero points"),
    "codes-as-float": (tensor(f"{FFN}.codes", dtype="F32"), "codes are F32"),
    "codes-shape": (tensor(f"{FFN}.codes", shape=[32, 32]), "codes are U8 (32, 32)"),
    "codes-flat": (tensor(f"{FFN}.codes", shape=[1024]), "codes are U8 (1024,)"),
    "codes-none": (tensor(f"{FFN}.codes", shape=[0, 16]), "codes are U8 (0, 16)"),
    "codes-negative": (tensor(f"{FFN}.codes", shape=[-64, 16]), "the header of"),
    "codes-text": (tensor(f"{FFN}.codes", shape=["64", 16]), "the header of"),
    "scale-shape": (tensor(f"{FFN}.scale", shape=[128]), "scale is F32 (128,)"),
    "scale-as-int": (tensor(f"{FFN}.scale", dtype="I32"), "scale is I32 (64, 2)"),
    "zero-shape": (tensor("blocks.0.ffn.2.zero", shape=[1, 32]), "zero is F32 (1, 32)"),
    "bias-shape": (tensor(BIAS, shape=[8, 8]), "its bias has shape (8, 8), its codes have 64 rows"),
    "packed-and-plain": (renamed(NORM, f"{PREFIX}{FFN}.weight"), "both packed and as it was"),
    "codes-of-nobody": (renamed(NORM, f"{PREFIX}other.codes"), "has other.codes, but the layer is not described"),
    "name-of-lines": (renamed(NORM, "a\nb\n" + "x" * 1000), "has the tensor a b x"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_header_gets_one_sentence(tmp_path, name):
    path = tmp_path / "bad.safetensors"
    written(path)
    entries, data = split(path)
    damage, words = DAMAGES[name]
    damage(entries)
    join(path, entries, data)
    with pytest.raises(HeaderError) as caught:
        read_msfp(path)
    assert words in one_sentence(str(caught.value)) and "bad.safetensors" in str(caught.value)


def test_files_of_other_kinds_are_told_apart(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "wan.safetensors"
    save_file({"head.weight": torch.ones(2, 2)}, path)
    assert "is not an MSFP file; make one with `python -m training.quantize`" in refused(path)
    path.write_bytes(b"GGUF" + bytes(100))
    assert "is not a safetensors file" in refused(path)
    with pytest.raises(HeaderError, match="there is no file"):
        read_msfp(tmp_path / "missing.safetensors")


def test_a_damaged_attention_header_is_told(tmp_path):
    path = tmp_path / "model.safetensors"
    written(path, header=Header(Schedule.parse("0 dense")))
    entries, data = split(path)
    entries["__metadata__"]["fpsattention.version"] = "99"
    join(path, entries, data)
    assert "v99 FPSAttention header" in refused(path)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["blocks.0.ffn.0.scale", "blocks.0.ffn.2.zero", "head.scale"])
def test_scales_that_are_not_finite_are_refused(tmp_path, part, broken):
    path = tmp_path / "model.safetensors"
    written(path)
    entries, data = split(path)
    start, _ = entries[PREFIX + part]["data_offsets"]
    join(path, entries, data[:start] + struct.pack("<f", broken) + data[start + 4 :])
    with pytest.raises(HeaderError, match=f"scales of {part.rpartition('.')[0]} are not finite") as caught:
        dict(read_msfp(path).packed())
    one_sentence(str(caught.value))


def test_a_file_that_loses_its_end_or_vanishes_is_told(tmp_path):
    path = tmp_path / "model.safetensors"
    written(path)
    found = read_msfp(path)
    entries, data = split(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert "is truncated" in refused(path)
    for read in (found.packed, found.tensors):
        with pytest.raises(HeaderError, match="cannot be read"):
            list(read())
    # Offsets that do not fit the shapes, which only reading the tensors finds.
    entries[PREFIX + NORM]["shape"] = [31]
    join(path, entries, data)
    with pytest.raises(HeaderError, match="cannot be read") as caught:
        list(read_msfp(path).tensors())
    one_sentence(str(caught.value))
    path.unlink()
    with pytest.raises(HeaderError, match="cannot be read"):
        list(found.tensors())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
places = st.sampled_from(
    [
        (), ("blocks.0.ffn.0",), ("blocks.0.ffn.2", "weight"), ("blocks.0.ffn.2", "input"),
        *(("blocks.0.ffn.0", "weight", key) for key in ("format", "granularity", "columns", "x")),
        *(("blocks.0.ffn.2", "input", key) for key in ("format", "mode", "maxval", "zero", "x")),
    ]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places, anything)
def test_whatever_the_header_says_is_a_file_or_one_sentence(tmp_path, place, value):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "model.safetensors"
    if not whole.exists():
        written(whole)
    entries, data = split(whole)
    table = json.loads(entries["__metadata__"]["msfp.layers"])
    inner = table
    for key in place[:-1]:
        inner = inner[key]
    if place:
        inner[place[-1]] = value
    else:
        table = value
    entries["__metadata__"]["msfp.layers"] = json.dumps(table)
    join(path, entries, data)
    try:
        assert len(dict(read_msfp(path).packed())) == 4
    except HeaderError as error:
        one_sentence(str(error))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["dtype", "shape", "data_offsets"]), st.integers(0, 12), anything)
def test_whatever_the_table_of_tensors_says_is_a_file_or_one_sentence(tmp_path, key, which, value):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "model.safetensors"
    if not whole.exists():
        written(whole)
    entries, data = split(whole)
    names = [name for name in entries if name != "__metadata__"]
    entries[names[which % len(names)]][key] = value
    join(path, entries, data)
    try:
        found = read_msfp(path)
        list(found.tensors()), list(found.packed())
    except HeaderError as error:
        one_sentence(str(error))
