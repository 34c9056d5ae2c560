"""Files of timestep-aware LoRAs: routes by sigma, what is written comes back, damage gets one sentence."""

from __future__ import annotations

import json
import math
import struct

import pytest
import torch
from fpsattention.kernels.checkpoint import HeaderError
from fpsattention.kernels.timestep_lora import RouteTable, read_timestep_lora, write_timestep_lora
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TABLE = RouteTable(((0.8333, 1), (0.25, 0), (0.0, 2)))
LAYER, OTHER = "blocks.0.ffn.0", "blocks.0.self_attn.q"

ends = st.lists(st.floats(0.001, 0.999), unique=True, max_size=8).map(lambda e: [*sorted(e, reverse=True), 0.0])
tables = ends.flatmap(
    lambda e: st.lists(st.integers(0, 3), min_size=len(e), max_size=len(e)).map(
        lambda found: RouteTable(tuple(zip(e, found)))
    )
)


def hubs(hub: int = 3, rank: int = 4, dtype=torch.float32) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def pair(columns: int, rows: int):
        a, b = torch.randn(hub, rank, columns, generator=generator), torch.randn(hub, rows, rank, generator=generator)
        return a.to(dtype), b.to(dtype)

    return {LAYER: pair(16, 32), OTHER: pair(16, 16)}


# --- routes


def test_each_row_holds_down_to_its_end():
    cases = {1.0: 1, 0.9: 1, 0.8333: 1, 0.83: 0, 0.25: 0, 0.2499: 2, 0.0: 2, 1.5: 1, -0.5: 2}
    assert {sigma: TABLE.at(sigma) for sigma in cases} == cases
    # The float32 next below an end is that end.
    assert TABLE.at(float(torch.tensor(0.8333))) == 1
    assert TABLE.count == 3 and TABLE.text.splitlines()[1] == "sigma 0.8333 .. 0.2500   LoRA 0"


@given(tables, st.floats(0, 1))
def test_routes_are_the_first_row_that_sigma_reaches(table, sigma):
    near = any(abs(sigma - until) < 2e-6 for until, _ in table.rows)
    found = [index for until, index in table.rows if until <= sigma]
    assert near or table.at(sigma) == found[0]
    assert 0 <= table.at(sigma) < table.count


@given(tables)
def test_text_gives_the_table_back(table):
    assert RouteTable.from_json(table.to_json()) == table


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"), ("{}", "cannot be read"), ("[[0.5]]", "cannot be read"), ("[[0.5, 1, 2]]", "cannot be"),
        ("[0.5, 0]", "cannot be read"), ("[[0, 0.5]]", "cannot be read"), ("[[0, true]]", "cannot be read"),
        ("[[true, 0]]", "cannot be read"), ('[["0", 0]]', "cannot be read"), ("[[NaN, 0], [0, 0]]", "cannot be read"),
        ("[[Infinity, 0], [0, 0]]", "cannot be read"), ("[[null, 0]]", "cannot be read"), ("[" * 100_000, "cannot be"),
        (f"[[1{'0' * 400}, 0], [0, 0]]", "cannot be read"), (json.dumps([[0, 0]] * 5000), "cannot be read"),
        ("[]", "does not reach sigma 0"), ("[[0.5, 0]]", "does not reach sigma 0"),
        ("[[0.5, 0], [0.6, 1], [0, 0]]", "does not fall"), ("[[0.5, 0], [0.5, 1], [0, 0]]", "does not fall"),
        ("[[1.0, 0], [0, 0]]", "does not fall"), ("[[-0.5, 0], [0, 0]]", "does not fall"),
        ("[[0.5, -1], [0, 0]]", "negative LoRA"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_gets_one_sentence(text, words):
    with pytest.raises(HeaderError, match=words) as caught:
        RouteTable.from_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


# --- files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_gives_everything_back(tmp_path, dtype):
    path, made = tmp_path / "lora.safetensors", hubs(dtype=dtype)
    write_timestep_lora(path, made, TABLE, 0.5, base="abcd", facts={"trainer": "1"})
    found = read_timestep_lora(path)
    assert (found.table, found.hub, found.rank, found.scale, found.base) == (TABLE, 3, 4, 0.5, "abcd")
    assert found.layers == {LAYER: (16, 32), OTHER: (16, 16)} and found.header is None
    for layer, a, b in found.tensors():
        assert torch.equal(a, made[layer][0]) and torch.equal(b, made[layer][1])


def test_what_it_fits(tmp_path):
    path = tmp_path / "lora.safetensors"
    write_timestep_lora(path, hubs(), TABLE, 1.0)
    found = read_timestep_lora(path)
    assert found.misfit({LAYER: (16, 32), OTHER: (16, 16), "head": (1, 1)}) is None
    assert "is for another model: it adapts blocks.0.self_attn.q" in found.misfit({LAYER: (16, 32)})
    assert "of 16 -> 32 features, this one's is 16 -> 64" in found.misfit({LAYER: (16, 64), OTHER: (16, 16)})


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


def meta(**values):
    return lambda entries: entries["__metadata__"].update({f"talora.{key}": value for key, value in values.items()})


def shape(part: str, value, layer: str = LAYER):
    return lambda entries: entries[f"{layer}.talora_{part}"].update(shape=value)


def moved(old: str, new: str):
    return lambda entries: entries.update({new: entries.pop(old)})


def another_hub(entries: dict) -> None:
    entries[f"{OTHER}.talora_A"]["shape"] = [6, 2, 16]
    entries[f"{OTHER}.talora_B"]["shape"] = [6, 16, 2]


def emptied(entries: dict) -> None:
    for name in [name for name in entries if name != "__metadata__"]:
        del entries[name]


DAMAGES = {
    "newer": (meta(version="2"), "v2, this version reads up to v1"),
    "version-zero": (meta(version="0"), "version '0'"),
    "version-text": (meta(version="x" * 1000), "version 'xxx"),
    "version-digit": (meta(version="²"), "version '²'"),
    "version-long": (meta(version="9" * 5000), "version '999"),
    "table-missing": (lambda e: e["__metadata__"].pop("talora.table"), "table of routes cannot be read"),
    "table-beyond": (meta(table="[[0.5, 3], [0, 0]]"), "uses 4 LoRAs, it has 3"),
    "table-far-beyond": (meta(table=f"[[0, {10**3000}]]"), "uses 1000"),
    "scale-missing": (lambda e: e["__metadata__"].pop("talora.scale"), "its scale is not a number"),
    "scale-nan": (meta(scale="NaN"), "its scale is not a number"),
    "scale-true": (meta(scale="true"), "its scale is not a number"),
    "scale-deep": (meta(scale="[" * 100_000), "its scale is not a number"),
    "scale-huge": (meta(scale="1" + "0" * 400), "its scale is not a number"),
    "two-axes": (shape("A", [12, 16]), "it must have three axes"),
    "no-rank": (shape("A", [3, 0, 16]), "it must have three axes"),
    "text": (shape("A", ["3", 4, 16]), "the header of"),
    "integers": (lambda e: e[f"{LAYER}.talora_A"].update(dtype="I32"), "is I32"),
    "other-rank": (shape("A", [3, 8, 8]), "which make no low-rank matrices"),
    "other-hub": (shape("B", [4, 24, 4]), "which make no low-rank matrices"),
    "hubs-differ": (another_hub, "different numbers of LoRAs"),
    "no-b": (lambda e: e.pop(f"{LAYER}.talora_B"), f"{LAYER} lacks its talora_B"),
    "no-a": (lambda e: e.pop(f"{LAYER}.talora_A"), f"{LAYER} lacks its talora_A"),
    "strange": (moved(f"{LAYER}.talora_A", f"{LAYER}.lora_A"), "which is none of a timestep-aware LoRA"),
    "name-of-lines": (moved(f"{LAYER}.talora_A", "a\n" + "b" * 1000), "has the tensor a b"),
    "empty": (emptied, "it has no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_header_gets_one_sentence(tmp_path, name):
    path = tmp_path / "bad.safetensors"
    write_timestep_lora(path, hubs(), TABLE, 1.0)
    entries, data = split(path)
    damage, words = DAMAGES[name]
    damage(entries)
    join(path, entries, data)
    with pytest.raises(HeaderError) as caught:
        read_timestep_lora(path)
    assert words in one_sentence(str(caught.value)) and "bad.safetensors" in str(caught.value)


def test_more_loras_than_a_hub_may_have(tmp_path):
    path = tmp_path / "lora.safetensors"
    write_timestep_lora(path, hubs(hub=65, rank=1), TABLE, 1.0)
    with pytest.raises(HeaderError, match=r"it has 65 \(at most 64\)"):
        read_timestep_lora(path)


def test_files_of_other_kinds_and_broken_ones(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "lora.safetensors"
    save_file({"blocks.0.lora_A.weight": torch.ones(2, 2)}, path)
    with pytest.raises(HeaderError, match="is not a timestep-aware LoRA"):
        read_timestep_lora(path)
    made = hubs()
    write_timestep_lora(path, made, TABLE, 1.0)
    found = read_timestep_lora(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(HeaderError, match="cannot be read") as caught:
        list(found.tensors())
    one_sentence(str(caught.value))
    for broken in (math.nan, math.inf):
        made[OTHER][1][0, 0, 0] = broken
        write_timestep_lora(path, made, TABLE, 1.0)
        with pytest.raises(HeaderError, match=f"the LoRA of {OTHER} is not finite"):
            list(read_timestep_lora(path).tensors())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["version", "table", "scale"]), anything | st.lists(st.lists(anything, min_size=2, max_size=2)))
def test_whatever_the_header_says_is_a_file_or_one_sentence(tmp_path, key, value):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "lora.safetensors"
    if not whole.exists():
        write_timestep_lora(whole, hubs(), TABLE, 1.0)
    entries, data = split(whole)
    entries["__metadata__"][f"talora.{key}"] = value if isinstance(value, str) else json.dumps(value)
    join(path, entries, data)
    try:
        assert len(list(read_timestep_lora(path).tensors())) == 2
    except HeaderError as error:
        one_sentence(str(error))
