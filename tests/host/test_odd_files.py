"""Files as they should not be, in the loader: one sentence before anything is read, and odd names that work."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys

import pytest
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.comfy_host import ComfyHostError, PromptRejectedError

GOOD = Header(Schedule.parse("0.00 fp8 x1 all 60% 60%"), tile=(3, 5, 4)).to_metadata()
ODD_NAMES = [
    "\u540d\u524d mit \"quotes\" & 'x' \U0001f600.safetensors",
    "new\nline.safetensors",
    "a b%20c#?.safetensors",
]
DAMAGED = {
    "json": ({"schedule": '{"phases": ['}, "line 1, column 13: the JSON is broken"),
    "nul": ({"schedule": "0.00 \x00x"}, r"'\x00x' is no attention"),
    "half": ({"schedule": "0.00 " + "z" * 9999}, "a word of 9999 characters"),
    "future": ({"version": "2"}, "update the node pack"),
    "version": ({"version": "one"}, "not a whole number"),
    "tile": ({"tile": "9x9x9"}, "does not fit its 64 slots"),
    "two": ({"tile": "3x5"}, "not three extents"),
    "slots": ({"slots": "0"}, "a tile has 2 to 4096"),
    "smooth": ({"smooth_k": "yes"}, "knows true or false"),
    "step": ({"step": "-1"}, "cannot be negative"),
    "long": ({"step": "9" * 5000}, "not a whole number"),
}


@pytest.fixture(scope="module")
def folder(server, tiny):
    folder = server.base / "models" / "diffusion_models"
    tiny.write_tiny_wan(folder / "plain.safetensors", layers=1)
    for name, (changes, _) in DAMAGED.items():
        metadata = GOOD | {f"fpsattention.{key}": value for key, value in changes.items()}
        tiny.write_tiny_wan(folder / f"{name}.safetensors", metadata=metadata, layers=1)
    return folder


def load(server, name: str) -> str:
    inputs = {"model_name": name, "weight_dtype": "default"}
    graph = {
        "1": {"class_type": "FPSAttentionLoadWan", "inputs": inputs},
        "2": {
            "class_type": "FPSAttentionPreview",
            "inputs": {"schedule": ["1", 2], "width": 64, "height": 64, "frames": 5, "steps": 2, "shift": 5.0},
        },
    }
    return server.prompt(graph)["outputs"]["1"]["text"][0]


def refusal(server, name: str) -> str:
    with pytest.raises(PromptRejectedError) as refused:
        load(server, name)
    details = [e["details"] for node in refused.value.details["node_errors"].values() for e in node["errors"]]
    assert len(details) == 1 and details[0].isprintable() and len(details[0]) < 500
    return details[0]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_a_sentence(server, folder, name):
    sentence = refusal(server, f"{name}.safetensors")
    assert f"{name}.safetensors" in sentence and DAMAGED[name][1] in sentence


def test_what_is_no_file_of_weights_is_a_sentence(server, folder):
    whole = (folder / "plain.safetensors").read_bytes()
    for name, data, words in (
        ("start", whole[:50], "its header alone needs"), ("middle", whole[: len(whole) // 2], "is truncated"),
        ("zero", b"", "is not a safetensors file"), ("page", b"<html>404</html>", "is not a safetensors file"),
        ("endless", struct.pack("<Q", 2**63) + b"{}", "is not a safetensors file"),
    ):  # fmt: skip
        (folder / f"{name}.safetensors").write_bytes(data)
        assert words in refusal(server, f"{name}.safetensors")
    (folder / "folder.safetensors").mkdir()
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "gone.safetensors").write_bytes(whole)
    server.get("/object_info/FPSAttentionLoadWan")
    (folder / "gone.safetensors").unlink()
    for name in ("folder", "loop", "gone", "../../secret"):
        assert "is not in models/diffusion_models" in refusal(server, f"{name}.safetensors")


def test_offsets_that_do_not_fit_are_a_sentence(server, folder):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"blocks.0.self_attn.q.weight": entry, "head.modulation": entry}).encode()
    (folder / "offsets.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ComfyHostError, match=r"offsets.safetensors cannot be loaded \(.*\); download it again"):
        load(server, "offsets.safetensors")


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_load_and_give_a_text_that_reads(server, folder, name):
    shutil.copyfile(folder / "plain.safetensors", folder / name)
    assert "carries no FPSAttention schedule" in load(server, name).splitlines()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="only here a file name may be no text")
def test_a_name_that_is_no_text_is_a_sentence_and_the_server_lives(server, folder):
    raw = os.fsencode(folder) + b"/latin\xff.safetensors"
    shutil.copyfile(folder / "plain.safetensors", raw)
    with pytest.raises(ComfyHostError, match=r"latin\\udcff.safetensors cannot be loaded .* a plain name"):
        load(server, os.path.basename(os.fsdecode(raw)))
    os.truncate(raw, 5)
    assert r"latin\udcff.safetensors is not a safetensors file" in refusal(server, "latin\udcff.safetensors")
    assert load(server, "plain.safetensors")
    # The host itself lists and logs such names as it can.
    ours = [part for part in server.log().split("--- Logging error ---")[1:] if "carries no" in part]
    assert ours == []
