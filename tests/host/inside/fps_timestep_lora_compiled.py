"""Timestep-aware LoRAs beside compilers: switching compiles nothing again, and clones share no graph that is wrong."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict
from fps_common import apply, model_of, relative, run_cases, sample, shifted
from fps_talora import HubFile, adapt, in_blocks, linears, traces

SIZE, STEPS, LAYERS = (2, 8, 8), 5, 1
WHOLE, BLOCKS = ["diffusion_model"], [f"diffusion_model.blocks.{i}" for i in range(LAYERS)]


def compiled(model: Any, keys: list[str]) -> Any:
    """``model`` compiled in these parts, with the guards that the host's node drops."""
    m = model.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model=m, keys=keys, backend="eager", options=options)
    return m


def frames() -> int:
    return torch._dynamo.utils.counters["frames"]["total"]


def alternating(keys: list[str]) -> dict:
    """Without, with one hub, with another, with both, in turn, before and behind the compile node."""
    model = shifted(model_of(layers=LAYERS))
    one = HubFile("compiled1", linears(model, in_blocks), rows=((0.98, 0), (0.9, 1), (0.8, 2), (0.5, 0), (0.0, 1)))
    other = HubFile("compiled2", linears(model, in_blocks), seed=5, rank=2)
    makers = {
        "plain": lambda m: m,
        "one": lambda m: adapt(m, one),
        "both": lambda m: adapt(adapt(m, one), other),
        "sparse": lambda m: adapt(apply(m, "0.95 dense\n0.00 bf16 - 1 1 1"), one),
    }
    expected = {name: sample(make(model), size=SIZE, steps=STEPS) for name, make in makers.items()}
    found = {}
    for order in ("before", "behind"):
        torch._dynamo.reset()
        models = {
            name: make(compiled(model, keys)) if order == "before" else compiled(make(model), keys)
            for name, make in makers.items()
        }
        errors, looked = {}, []
        for _ in range(2):
            for name in (*models, "plain", "one"):
                out = sample(models[name], size=SIZE, steps=STEPS)
                errors[name] = max(errors.get(name, 0.0), relative(out, expected[name]))
            looked.append(frames())
        found[order] = {"errors": errors, "looked": looked, "traces": traces(model)}
    return found


def case_whole() -> dict:
    return alternating(WHOLE)


def case_blocks() -> dict:
    return alternating(BLOCKS)


def case_compiled_in_place() -> dict:
    """Blocks that another node replaced by compiled ones on the model itself, as object patches."""
    model = shifted(model_of(layers=LAYERS))
    file = HubFile("inplace", linears(model, in_blocks))
    expected = sample(adapt(model, file), size=SIZE, steps=STEPS)
    torch._dynamo.reset()
    found = []
    for first in (True, False):
        m = model.clone() if first else adapt(model, file)
        for key in BLOCKS:
            m.add_object_patch(key, torch.compile(m.get_model_object(key), backend="eager"))
        m = adapt(m, file) if first else m
        found.append(relative(sample(m, size=SIZE, steps=STEPS), expected))
        m.unpatch_model()
    return {"errors": found, "traces": traces(model)}


run_cases(globals())
