"""What is on a MODEL: its shape, its file's schedule, our patch, and every other node's hooks by name."""

from __future__ import annotations

import contextlib
from typing import Any

from .check_environment import Report
from .layout import is_wan
from .model_facts import model_facts
from .msfp_facts import msfp_facts
from .patch import INNER
from .settings import KEY, Patched

_OURS = __package__


def describe_model(report: Report, model: Any) -> None:
    """Add what is known about ``model`` to ``report``."""
    report.lines.append("")
    diffusion_model = None
    with contextlib.suppress(Exception):  # the next line tells
        diffusion_model = model.get_model_object("diffusion_model")
    report.add("model", lambda: f"{type(model.model).__name__}, {type(diffusion_model).__name__}")
    if diffusion_model is None or not is_wan(diffusion_model):
        report.do("The connected model is not a Wan model: FPSAttention does nothing to it.")
    else:
        report.add("shape", lambda: _shape(model))
        if (quantized := msfp_facts(model)) is not None:
            report.add("weights", lambda: quantized.line)
        report.add("file", lambda: _file(report, model))
        report.add("patched", lambda: _patched(report, model))
    report.add("hooks", lambda: hooks(model) or "none of other nodes")


def _shape(model: Any) -> str:
    facts = model_facts(model)
    dtype = str(facts.dtype).removeprefix("torch.")
    weights = str(model.model.get_dtype()).removeprefix("torch.")
    text = f"{facts.layers} layers, {facts.heads} heads of {facts.head_dim}, computes in {dtype}, weights {weights}, "
    text += f"tokens of {facts.pixels} x {facts.pixels} pixels"
    return text + ("" if facts.shift is None else f", shift {facts.shift:g}")


def _file(report: Report, model: Any) -> list[str]:
    facts = model_facts(model)
    if facts.problem:
        report.do(f"Replace the model file: {facts.problem}")
        return [facts.problem]
    header = facts.header
    if header is None:
        report.do(
            "This model's file carries no schedule, so it was not trained for sparsity: use the preset mild, or "
            "few-step with a distilled LoRA."
        )
        return ["carries no FPSAttention schedule"]
    tile = "x".join(map(str, header.tile)) if header.tile else "chosen per size"
    by = header.trainer or "an unnamed trainer"
    lines = [f"trained by {by}, {header.step} steps, {header.slots} slots per tile, tile {tile}"]
    if header.heads is not None:
        lines.append(f"with a head table for {header.heads.layers} layers of {header.heads.heads} heads")
        if problem := header.heads.misfit(facts.layers, facts.heads):
            report.do(f"Replace the model file: {problem}")
    return lines + [f"  {line.strip()}" for line in header.schedule.format().splitlines() if not line.startswith("#")]


def _patched(report: Report, model: Any) -> str:
    patched = model.get_attachment(KEY)
    if not isinstance(patched, Patched):
        report.do("The connected model is not patched: connect the MODEL output of FPSAttention (Wan).")
        return "no, every step runs the host's dense attention"
    settings = patched.settings
    return f"yes, schedule from {settings.source}, {settings.choices}"


def hooks(model: Any) -> list[str]:
    """Return one line per hook that another node left on ``model``: what it hooks, and whose it is."""
    options = getattr(model, "model_options", None) or {}
    inner = options.get("transformer_options") or {}
    lines = []
    if (override := inner.get("optimized_attention_override")) is not None and not _is_ours(override):
        lines.append(f"attention override: {name_of(override)}")
    blocks: dict[str, list[str]] = {}
    for place, patches in (inner.get("patches_replace") or {}).items():
        for key, patch in patches.items():
            while hasattr(patch, INNER):
                patch = getattr(patch, INNER)
            if patch is not None and not _is_ours(patch):
                blocks.setdefault(f"{place} {key[0] if isinstance(key, tuple) else key}: {name_of(patch)}", []).append(
                    ""
                )
    lines += [f"block patch on {what} ({len(found)} blocks)" for what, found in blocks.items()]
    for place, patches in (inner.get("patches") or {}).items():
        lines.append(f"patch {place}: {', '.join(sorted({name_of(patch) for patch in patches}))}")
    for source in (getattr(model, "wrappers", None) or {}, inner.get("wrappers") or {}):
        for kind, by_key in source.items():
            for key, found in by_key.items():
                line = f"wrapper {kind} by {key or 'no key'}"
                if key != KEY and found and line not in lines:
                    lines.append(line)
    for kind, by_key in (getattr(model, "callbacks", None) or {}).items():
        lines += [f"callback {kind} by {key or 'no key'}" for key, found in by_key.items() if key != KEY and found]
    lines += [f"object patch: {name}" for name in list(getattr(model, "object_patches", None) or {})[:20]]
    for name in ("model_function_wrapper", "sampler_cfg_function", "denoise_mask_function"):
        if options.get(name) is not None:
            lines.append(f"{name}: {name_of(options[name])}")
    if weights := getattr(model, "patches", None):
        lines.append(f"weight patches (LoRA and the like) on {len(weights)} tensors")
    return lines


def name_of(function: Any) -> str:
    """Return module and name of a function, method or instance."""
    target = getattr(function, "__func__", function)
    name = getattr(target, "__qualname__", None) or type(function).__qualname__
    module = getattr(target, "__module__", None) or type(function).__module__
    return f"{module}.{name}"


def _is_ours(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").startswith(_OURS)
