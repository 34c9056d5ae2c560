"""The videos of an evaluation as latents: sampled one by one, timed, kept with what they were sampled with."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from ...kernels.attention import resolve_backend
from ...kernels.checkpoint import HeaderError, read_metadata, write_checkpoint
from ...kernels.outlook import sampler_sigmas
from ...kernels.timestep_lora import is_timestep_lora
from ..attention import attention_state
from ..files import fingerprint
from ..flops import forward_flops
from ..lora import LoraLinear, load_lora
from ..model import WanTransformer3DModel, autocast, for_inference, load_model, model_shape
from ..names import HEAD_DIM
from ..sample import sample
from ..sparse import latent_grid
from ..step import model_inputs
from ..talora import load_timestep_lora
from .request import Method, ModelFile, Settings

_log = logging.getLogger(__name__)
KEY, FACTS = "evaluation.key", "evaluation.facts"


@dataclass(frozen=True)
class Sampled:
    """One video's latents on disk; ``key`` identifies everything that they depend on."""

    path: Path
    key: str
    facts: dict[str, Any]

    def latents(self) -> torch.Tensor:
        """Return (16, T, H, W) float32."""
        return load_file(self.path)["latents"]


def backends_of(methods: Sequence[Method], settings: Settings, device: torch.device) -> dict[str, str]:
    """Return by method which backend will run; raises BackendError where one cannot, and says what replaces what."""
    dtype = torch.float32 if settings.dtype == "fp32" else torch.bfloat16
    found, said = {}, set()
    for method in methods:
        kinds = {phase.attention for phase in method.attention.schedule.phases} - {"dense"}
        names = []
        for kind in sorted(kinds):
            name, note = resolve_backend(method.attention.backend, device, dtype, HEAD_DIM, kind)
            names.append(name)
            if note and device.type != "cpu" and note not in said:
                said.add(note)
                _log.warning("%s", note)
        found[method.key] = ", ".join(dict.fromkeys(names)) or "dense"
    return found


def sample_all(
    methods: Sequence[Method],
    settings: Settings,
    texts: Sequence[torch.Tensor],
    negative: torch.Tensor,
    text_identity: str,
    device: torch.device,
    out: Path,
    say: Callable[[str], None],
) -> dict[tuple[str, str], Sampled]:
    """Return the latents of every (method's key, clip's name), sampling those that are not in ``out`` already."""
    backends = backends_of(methods, settings, device)
    place = _device_name(device)
    prints = {method.model: _identity(method.model) for method in methods}
    found: dict[tuple[str, str], Sampled] = {}
    missing: list[tuple[Method, str, int, int, Path, str]] = []
    for method in methods:
        for name, prompt, seed in settings.clips:
            path = out / "latents" / method.key / f"{name}.safetensors"
            key = _key(method, settings, prompt, seed, (prints[method.model], text_identity, place))
            kept = _kept(path, key)
            if kept is None:
                missing.append((method, name, prompt, seed, path, key))
            else:
                found[method.key, name] = kept
    if found:
        say(f"{len(found)} of {len(found) + len(missing)} videos are there from an earlier run")
    # One model after the other, whatever the order of the table.
    order = list(prints)
    missing.sort(key=lambda one: order.index(one[0].model))
    loaded: tuple[ModelFile, WanTransformer3DModel] | None = None
    warm: set[str] = set()
    with tqdm(total=len(missing) * settings.steps, desc="sampling", unit="step", disable=not missing) as bar:
        for method, name, prompt, seed, path, key in missing:
            if loaded is None or loaded[0] is not method.model:
                loaded = None  # the old model's memory goes before the new one comes
                loaded = (method.model, _load(method.model, settings, device))
            bar.set_postfix_str(f"{method.title}, prompt {prompt + 1}, seed {seed}")
            if method.key not in warm and device.type == "cuda":
                _warm_up(loaded[1], method, settings, texts[prompt])
            warm.add(method.key)
            latents, facts = _sample_one(loaded[1], method, settings, texts[prompt], negative, seed, bar.update)
            facts |= {"backend": backends[method.key], "device": place}
            write_checkpoint(path, {"latents": latents}, extra_metadata={KEY: key, FACTS: json.dumps(facts)})
            found[method.key, name] = Sampled(path, key, facts)
    return found


def _identity(model: ModelFile) -> str:
    return " ".join(fingerprint(path) for path in (model.path, model.lora) if path is not None)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def _key(method: Method, settings: Settings, prompt: int, seed: int, identities: tuple[str, ...]) -> str:
    attention = method.attention
    parts = {
        "schedule": attention.schedule.format(),
        "attention": [attention.slots, attention.tile, attention.smooth_k, attention.backend],
        "sampler": [settings.shape, settings.steps, settings.shift, settings.cfg, settings.negative, settings.dtype],
        "clip": [settings.prompts[prompt], seed],
        "identities": identities,
    }
    if attention.heads is not None:
        parts["heads"] = attention.heads.digest
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(path: Path, key: str) -> Sampled | None:
    if not path.is_file():
        return None
    try:
        metadata, _ = read_metadata(path)
        return Sampled(path, key, json.loads(metadata[FACTS])) if metadata.get(KEY) == key else None
    except (HeaderError, KeyError, ValueError):
        return None


def _load(file: ModelFile, settings: Settings, device: torch.device) -> WanTransformer3DModel:
    model = load_model(file.path).requires_grad_(False)
    if file.lora is not None and is_timestep_lora(read_metadata(file.lora)[0]):
        load_timestep_lora(model, file.lora)
    elif file.lora is not None:
        load_lora(model, file.lora)
        merge_lora(model)
    return for_inference(model, settings.dtype, device)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add a model's adapters to its weights: videos are sampled without the time that adapters take."""
    for layer in list(model.modules()):
        if isinstance(layer, LoraLinear):
            layer.weight += layer.lora_scale * (layer.lora_B.float() @ layer.lora_A.float())
            layer.__class__ = nn.Linear
            del layer.lora_A, layer.lora_B
    model.requires_grad_(False)


@torch.no_grad()
def _warm_up(model: WanTransformer3DModel, method: Method, settings: Settings, text: torch.Tensor) -> None:
    """Run every phase, and band of a head table, once: what is compiled or planned at the first call is not part of a
    video's time."""
    state, device = attention_state(model), next(model.parameters()).device
    parts = {method.attention.part(s): s for s in sampler_sigmas(settings.steps, settings.shift)[:-1]}
    for sigma in parts.values():
        x, level = torch.zeros(1, *settings.shape, device=device), torch.full((1,), sigma, device=device)
        with state.step(method.attention, sigma, settings.shape), autocast(device, settings.dtype):
            model(*model_inputs(x, level, [text]), return_dict=False)


def _sample_one(
    model: WanTransformer3DModel,
    method: Method,
    settings: Settings,
    text: torch.Tensor,
    negative: torch.Tensor,
    seed: int,
    on_step: Callable[[], object],
) -> tuple[torch.Tensor, dict[str, Any]]:
    device = next(model.parameters()).device
    _wait(device)
    start = time.perf_counter()
    latents, steps = sample(
        model,
        shape=settings.shape,
        seeds=[seed],
        text=text,
        steps=settings.steps,
        shift=settings.shift,
        attention=method.attention,
        cfg=settings.cfg,
        negative=negative,
        dtype=settings.dtype,
        on_step=on_step,
    )
    _wait(device)
    seconds = time.perf_counter() - start
    tokens, passes = latent_grid(settings.shape).tokens, 1 if settings.cfg == 1 else 2
    densities = [step["density"] for step in steps]
    facts: dict[str, Any] = {"seconds": round(seconds, 4), "density": None, "flops": None}
    if None not in densities:
        shape = model_shape(model)
        flops = sum(forward_flops(shape, tokens, density, text_tokens=len(text)) for density in densities)
        facts |= {"density": sum(densities) / len(densities), "flops": passes * flops}
    return latents[0], facts


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
