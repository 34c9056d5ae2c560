"""Compiled models from Load MSFP Wan: whole or in blocks, with a LoRA, loaded whole and with little memory."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from fps_common import apply, relative, run_cases, sample, shifted
from fps_msfp_models import load, with_lora

SIZE, TEXT = (2, 8, 8), "0.90 dense\n0.00 bf16 - 60% 1 1"


def compiled(model: Any, what: str) -> Any:
    """The whole model or each block, compiled as the host's own node does it."""
    m = model.clone(disable_dynamic=True)
    keys = ["diffusion_model"] if what == "whole" else [f"diffusion_model.blocks.{i}" for i in range(3)]
    set_torch_compile_wrapper(model=m, keys=keys, backend="eager", options={"guard_filter_fn": skip_torch_compile_dict})
    return m


def looked() -> int:
    """How often the compiler has looked at a frame."""
    return torch._dynamo.utils.counters["frames"]["total"]


def _pair(model: Any, what: str) -> dict:
    """Sampled twice: right both times, and nothing compiled in the second."""
    expected = sample(model, size=SIZE, steps=2)
    torch._dynamo.reset()
    ours = compiled(model, what)
    first = relative(sample(ours, size=SIZE, steps=2), expected)
    frames = looked()
    second = relative(sample(ours, size=SIZE, steps=2), expected)
    return {"apart": [first, second], "again": looked() - frames, "frames": frames}


def case_whole() -> dict:
    model = shifted(load())
    return {"plain": _pair(model, "whole"), "lora": _pair(with_lora(model), "whole")}


def case_blocks() -> dict:
    model = shifted(load())
    return {"lora": _pair(with_lora(model), "blocks"), "sparse": _pair(apply(model, TEXT), "blocks")}


def case_little_memory() -> dict:
    """Most weights away from the device while compiled code runs."""
    whole = ModelPatcher.partially_load

    def little(self, device, extra_memory=0, force_patch_weights=False):
        self.load(device, lowvram_model_memory=1_500_000, force_patch_weights=force_patch_weights)
        return self.model.model_loaded_weight_memory

    model = shifted(load())
    ModelPatcher.partially_load = little
    try:
        found = _pair(with_lora(model), "blocks")
        return found | {"partly": bool(model.model.model_lowvram)}
    finally:
        ModelPatcher.partially_load = whole


run_cases(globals())
