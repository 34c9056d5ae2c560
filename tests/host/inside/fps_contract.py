"""What a patch sees of the host, observed on the real classes with the fake host's own eyes."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from pathlib import Path

import comfy.model_patcher
import torch
from fps_common import model_of, run_cases, sample

_PATH = Path(os.environ["FPS_PACK"]) / "tests" / "nodes" / "fake_host.py"
_SPEC = importlib.util.spec_from_file_location("fps_fake_host", _PATH)
fake = importlib.util.module_from_spec(_SPEC)
sys.modules["fps_fake_host"] = fake
_SPEC.loader.exec_module(fake)

SIZE = (3, 13, 17)


def _hooked(model, override, block_patch, wrapper):
    m = model.clone()
    for i in range(3):
        m.set_model_patch_replace(block_patch, "dit", "double_block", i)
    m.add_wrapper_with_key("diffusion_model", "observer", wrapper)
    m.model_options["transformer_options"]["optimized_attention_override"] = override
    return m


def case_real():
    model = model_of()
    return fake.observe(lambda *hooks: sample(_hooked(model, *hooks), size=SIZE, steps=1, tokens=32))


def case_fake():
    def call(*hooks):
        fake.run(_hooked(fake.Patcher(fake.WanModel()), *hooks), [1.0], size=SIZE, text=32)

    return fake.observe(call)


def case_signatures():
    """Every method that the patch calls exists on the real patcher and takes the same leading parameters."""
    differences = []
    for name in fake.PATCHER_METHODS:
        real = list(inspect.signature(getattr(comfy.model_patcher.ModelPatcher, name)).parameters)
        stub = list(inspect.signature(getattr(fake.Patcher, name)).parameters)
        if name != "clone" and len(stub) > len(real):
            differences.append([name, real, stub])
    for name in ("load_device", "model_options", "attachments", "wrappers", "callbacks", "model"):
        if not hasattr(model_of(), name):
            differences.append(name)
    return differences


def case_inner_model():
    inner = model_of().model
    return {
        "dtype": str(inner.get_dtype()),
        "cast": str(inner.manual_cast_dtype),
        "device": isinstance(model_of().load_device, torch.device),
    }


run_cases(globals())
