"""Files of timestep-aware LoRAs that cannot be used, and those that are for another base."""

from __future__ import annotations

from typing import Any

import torch
from fps_common import load_pack, model_of, pack_module, run_cases, sample
from fps_talora import FOLDER, HubFile, acting, in_blocks, linears
from safetensors.torch import load_file, save_file

SIZE = (2, 8, 8)


def case_refusals() -> dict:
    """What is wrong in one sentence, when the workflow is queued or before anything is sampled."""
    model = model_of(layers=2)
    good = HubFile("good", linears(model, in_blocks))
    kernel = pack_module("kernels.timestep_lora")
    save_file({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.ones(4, 256)}, FOLDER / "ordinary.safetensors")
    (FOLDER / "damaged.safetensors").write_bytes((FOLDER / good.name).read_bytes()[:5000])
    (FOLDER / "noise.safetensors").write_bytes(b"\x07" * 4000)
    HubFile("wide", {"blocks.0.ffn.0": (5120, 13824)})
    HubFile("other", {"double_blocks.0.img_mlp": (8, 8)})
    tensors = load_file(FOLDER / good.name)
    head = {"talora.version": "9", "talora.table": "[[0.0, 0]]", "talora.scale": "1.0", "talora.base": ""}
    save_file(tensors, FOLDER / "newer.safetensors", metadata=head)
    save_file(tensors, FOLDER / "table.safetensors", metadata=head | {"talora.version": "1", "talora.table": "[]"})
    broken = {layer: (a.clone(), b.clone()) for layer, (a, b) in good.matrices.items()}
    broken["blocks.1.ffn.2"][1][0, 0, 0] = float("nan")
    kernel.write_timestep_lora(FOLDER / "nan.safetensors", broken, kernel.RouteTable(good.rows), 1.0)
    kernel.write_timestep_lora(FOLDER / "scaled.safetensors", good.matrices, kernel.RouteTable(good.rows), 1e300)
    found = {}
    names = ("ordinary", "damaged", "noise", "newer", "table", "wide", "other", "nan", "scaled", "missing")
    for name in names:
        found[name] = _refusal(model, f"{name}.safetensors")
    for name, strength in {"strength": float("nan"), "huge": 1e30, "endless": 10**400}.items():
        found[name] = _refusal(model, good.name, strength)
    found["no name"] = _refusal(model, None)
    found["no model"] = _refusal(object(), good.name)
    return found | {"good": _refusal(model, good.name)}


def _refusal(model: Any, name: Any, strength: float = 1.0) -> list[str]:
    """The sentence of validation ('' if it accepts) and the one of running."""
    node = load_pack()["FPSAttentionTimestepLora"]
    said = node.validate_inputs(lora_name=name)
    try:
        node.execute(model=model, lora_name=name, strength=strength)
        ran = ""
    except ValueError as error:
        ran = str(error)
    return ["" if said is True else said, ran]


def case_bases() -> dict:
    """A hub for a quantized base: what the text says, and the note of a run, once."""
    node, found = load_pack()["FPSAttentionTimestepLora"], {}
    model = model_of(layers=1)
    layers = linears(model, in_blocks)
    for name, base, fingerprint in (
        ("same", "a" * 64, "a" * 64), ("another", "a" * 64, "b" * 64), ("plain model", "a" * 64, None),
        ("plain hub", "", "b" * 64), ("both plain", "", None),
    ):  # fmt: skip
        file, m = HubFile(f"base {name}", layers, base=base), model.clone()
        if fingerprint is not None:
            facts = pack_module("nodes.msfp_facts")
            m.set_attachments(facts.KEY, facts.MsfpFacts("model", fingerprint, 10, 4.5, facts.AS_TRAINED))
        adapted, text = node.execute(model=m, lora_name=file.name, strength=1.0).result
        for _ in range(2):
            sample(adapted, size=SIZE, steps=2)
        found[name] = {"text": text, "notes": [run.notes for run in acting(adapted).record.runs]}
    return found


run_cases(globals())
