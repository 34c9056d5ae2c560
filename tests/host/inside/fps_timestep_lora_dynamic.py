"""A timestep-aware LoRA under the host's dynamic memory, as far as a processor goes: its patcher and its cast are the
real ones, what stands behind them (memory on a card that comes and goes) is played by buffers here."""

from __future__ import annotations

from typing import Any

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from fps_common import model_of, relative, run_cases
from fps_talora import HubFile, adapt, in_blocks, linears

CPU = torch.device("cpu")
SIGMAS = (0.95, 0.7, 0.1)
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


def outputs(model: Any) -> torch.Tensor:
    """What the model says at each of the sigmas."""
    generator = torch.Generator().manual_seed(3)
    x, context = torch.randn(1, 16, 2, 8, 8, generator=generator), torch.randn(1, 32, 4096, generator=generator)
    options = dict(model.model_options["transformer_options"], wrappers=model.wrappers)
    call = lambda s: model.model.apply_model(x, torch.tensor([s]), c_crossattn=context, transformer_options=options)  # noqa: E731
    return torch.cat([call(sigma) for sigma in SIGMAS])


def ready(patcher: Any) -> int:
    """What partially_load does, and a buffer for every layer, which the host's library would reserve; how many."""
    patcher.partially_load(CPU)
    count = 0
    for module in patcher.model.modules():
        if hasattr(module, "seed_key") and not hasattr(module, "_v"):
            size = comfy.memory_management.vram_aligned_size([module.weight, module.bias])
            module._v, count = torch.zeros(size, dtype=torch.uint8), count + 1
    return count


def case_numbers() -> dict:
    """Brought for each use, brought and kept, kept, thrown out and brought again."""
    base = model_of(layers=2)
    file = HubFile("dynamic", linears(base, in_blocks))
    expected, plain = outputs(adapt(base, file)), outputs(base)
    _play()
    model = adapt(model_of(layers=2), file)
    (hub,) = model.get_nested_additional_models()
    layers = ready(model), ready(hub)
    outs = []
    for ROOM["signature"] in (None, 1, 1, 2, None):
        outs.append(relative(outputs(model), expected))
    return {
        "kinds": [type(patcher).__name__ for patcher in (model, hub)], "apart": max(outs),
        "changed": relative(plain, expected), "layers": layers, "branches": 2 * 3 * len(file.matrices),
    }  # fmt: skip


run_cases(globals())
