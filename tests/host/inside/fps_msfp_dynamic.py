"""Load MSFP Wan under the host's dynamic memory, as far as a processor goes: its patcher and its cast are the real
ones, what stands behind them (memory on a card that comes and goes) is played by buffers here."""

from __future__ import annotations

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from fps_common import pack_module, relative, run_cases
from fps_msfp_models import (
    AS_TRAINED,
    FULL_PRECISION,
    forward,
    load,
    ordinary,
    packed_layers,
    state_of_layers,
    velocity,
    with_lora,
)

CPU = torch.device("cpu")
# Whether weights stay where they were brought: a number that changes when they are thrown out, or None: no room.
ROOM: dict = {"signature": 1}


def _play() -> None:
    """The host takes the processor for a card, and its library's memory is a buffer for each layer."""
    model_vbar, library = comfy.ops.comfy_aimdo.model_vbar, comfy.ops.comfy_aimdo.torch
    comfy.model_management.is_device_cpu = lambda device: False
    model_vbar.vbar_fault = lambda buffer: ROOM["signature"]
    model_vbar.vbar_signature_compare = lambda now, then: now is not None and now == then
    model_vbar.vbar_unpin = lambda buffer: None
    library.aimdo_to_tensor = lambda buffer, device: buffer
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic


EXPECTED = {}
for mode in (AS_TRAINED, FULL_PRECISION):
    with torch.inference_mode():
        EXPECTED[mode] = {
            "plain": velocity(ordinary(activations=mode)),
            "lora": velocity(with_lora(ordinary(activations=mode))),
        }
_play()


def _ready(model) -> None:
    """What partially_load does, and a buffer for every layer, which the host's library would reserve."""
    model.partially_load(CPU)
    for module in model.model.modules():
        if hasattr(module, "seed_key") and not hasattr(module, "_v"):
            size = comfy.memory_management.vram_aligned_size([module.weight, module.bias])
            module._v = torch.zeros(size, dtype=torch.uint8)


def case_numbers() -> dict:
    """Brought for each use, brought and kept, kept, thrown out and brought again: with a LoRA and without."""
    found = {}
    for mode in (AS_TRAINED, FULL_PRECISION):
        base = load(activations=mode)
        assert type(base) is comfy.model_patcher.ModelPatcherDynamic
        before = state_of_layers(base)
        for name, model in (("plain", base), ("lora", with_lora(base)), ("plain", base)):
            _ready(model)
            outs = []
            for ROOM["signature"] in (None, 1, 1, 2, None):
                outs.append(relative(forward(model), EXPECTED[mode][name]))
            kept = [m._v_weight for m in packed_layers(model).values()]
            found.setdefault(f"{name}, {mode}", []).append(
                {"apart": max(outs), "packed": all(type(w).__name__ == "QuantizedTensor" for w in kept),
                 "attached": sum(m.on_the_fly is not None for m in packed_layers(model).values())}
            )  # fmt: skip
        found[f"codes, {mode}"] = [entry[:3] for entry in state_of_layers(base)] == [entry[:3] for entry in before]
    return found


def case_reserved() -> dict:
    """What the host reserves for a packed layer are its packed bytes."""
    model = load()
    layers = packed_layers(model)
    sizes = {name: comfy.memory_management.vram_aligned_size(m.weight) for name, m in layers.items()}
    packed = {name: pack_module("nodes.msfp_linear").packed_of(m.weight).nbytes for name, m in layers.items()}
    # Each of at most three tensors is rounded up to 1024 bytes.
    return {
        "most": max(sizes[name] - packed[name] for name in sizes),
        "least": min(sizes[n] - packed[n] for n in sizes),
    }


def case_without_dynamic() -> dict:
    """What the host's compile node and its LoRA hooks ask for: the same model with the patcher that loads it whole."""
    base = load(activations=FULL_PRECISION)
    whole = with_lora(base).clone(disable_dynamic=True)
    kind, clone = type(whole).__name__, type(whole.clone()).__name__
    whole.patch_model(CPU)
    out = relative(forward(whole), EXPECTED[FULL_PRECISION]["lora"])
    modes = {m.input_quantizer is None for m in packed_layers(whole).values()}
    return {"kind": kind, "clone": clone, "apart": out, "own": whole.model is not base.model, "rounds": modes == {True}}


run_cases(globals())
