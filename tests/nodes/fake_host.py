"""A small stand-in for the host: what a Wan model call and a sampler run look like to a patch.

``tests/host/test_contract.py`` observes the real classes in the same way and compares, so this cannot drift.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

HEAD_DIM = 128


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask=None, **kwargs: Any) -> torch.Tensor:
    """The host's dense attention on ``(b, s, heads * d)``."""
    b, s, width = q.shape
    q, k, v = (x.reshape(b, -1, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(b, s, width)


def optimized_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """The host's entry: hands the call to an override if there is one."""
    kwargs["_inside_attn_wrapper"] = True
    options = kwargs.get("transformer_options") or {}
    if "optimized_attention_override" in options:
        return options["optimized_attention_override"](attention, *args, **kwargs)
    return attention(*args, **kwargs)


class Block:
    """Self-attention over the video, then cross-attention to the text."""

    def __init__(self, dim: int, heads: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.heads = heads
        self.weights = [torch.randn(dim, dim, generator=generator) / dim**0.5 for _ in range(3)]

    def __call__(self, x: torch.Tensor, context: torch.Tensor, transformer_options: dict) -> torch.Tensor:
        q, k, v = (x @ w for w in self.weights)
        x = x + optimized_attention(q, k, v, heads=self.heads, transformer_options=transformer_options)
        return x + optimized_attention(x, context, context, heads=self.heads, transformer_options=transformer_options)


class WanModel:
    """The part of the host's class that a patch can see."""

    patch_size = (1, 2, 2)
    ref_conv = None

    def __init__(self, heads: int = 2, layers: int = 3):
        self.num_heads, self.dim = heads, heads * HEAD_DIM
        self.blocks = [Block(self.dim, heads, seed) for seed in range(layers)]

    def forward(self, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        wrappers = [w for ws in transformer_options.get("wrappers", {}).get("diffusion_model", {}).values() for w in ws]
        return Executor(self, wrappers)(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)

    def _forward(self, x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs):
        if time_dim_concat is not None:
            x = torch.cat([x, time_dim_concat], dim=2)
        _, channels, t, h, w = x.shape
        th, tw = -(-h // 2), -(-w // 2)
        tokens = torch.nn.functional.pad(x, (0, tw * 2 - w, 0, th * 2 - h)).reshape(len(x), channels, t, th, 2, tw, 2)
        hidden = tokens.mean((1, 4, 6)).reshape(len(x), -1, 1) + torch.linspace(-1, 1, self.dim)
        if self.ref_conv is not None and kwargs.get("reference_latent") is not None:
            extra = (kwargs["reference_latent"].shape[-2] // 2) * (kwargs["reference_latent"].shape[-1] // 2)
            hidden = torch.cat([torch.ones(len(x), extra, self.dim), hidden], 1)
        transformer_options["grid_sizes"] = (t, th, tw)
        replace = transformer_options.get("patches_replace", {}).get("dit", {})
        for i, block in enumerate(self.blocks):
            transformer_options["block_index"] = i
            if ("double_block", i) in replace:

                def original(args, block=block):
                    return {"img": block(args["img"], args["txt"], args["transformer_options"])}

                args = {
                    "img": hidden,
                    "txt": context,
                    "vec": None,
                    "pe": None,
                    "transformer_options": transformer_options,
                }
                hidden = replace[("double_block", i)](args, {"original_block": original})["img"]
            else:
                hidden = block(hidden, context, transformer_options)
        return hidden


class Executor:
    """Runs wrappers from the outermost on, then the model itself."""

    def __init__(self, model: WanModel, wrappers: list):
        self.class_obj, self.wrappers = model, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.wrappers:
            return self.wrappers[0](self._next(), *args, **kwargs)
        return self.class_obj._forward(*args, **kwargs)

    def _next(self) -> Executor:
        return Executor(self.class_obj, self.wrappers[1:])


class Inner:
    """The host's BaseModel."""

    manual_cast_dtype = None

    def __init__(self, diffusion_model: Any):
        self.diffusion_model = diffusion_model

    def get_dtype(self) -> torch.dtype:
        return torch.float32


class Patcher:
    """The host's ModelPatcher: clones share the model, and copy everything that a node may add."""

    load_device = torch.device("cpu")

    def __init__(self, diffusion_model: Any):
        self.model = Inner(diffusion_model)
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.attachments: dict[str, Any] = {}
        self.wrappers: dict[str, dict[str, list]] = {}
        self.callbacks: dict[str, dict[str, list]] = {}
        self.additional_models: dict[str, list] = {}

    def clone(self) -> Patcher:
        new = Patcher(self.model.diffusion_model)
        new.model = self.model
        new.model_options = {"transformer_options": _copied(self.model_options["transformer_options"])}
        new.attachments = dict(self.attachments)
        new.wrappers, new.callbacks = _copied(self.wrappers), _copied(self.callbacks)
        new.additional_models = _copied(self.additional_models)
        return new

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def set_attachments(self, key: str, attachment: Any) -> None:
        self.attachments[key] = attachment

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None:
        self.wrappers.get(wrapper_type, {}).pop(key, None)

    def add_callback_with_key(self, call_type: str, key: str, callback: Any) -> None:
        self.callbacks.setdefault(call_type, {}).setdefault(key, []).append(callback)

    def remove_callbacks_with_key(self, call_type: str, key: str) -> None:
        self.callbacks.get(call_type, {}).pop(key, None)

    def set_additional_models(self, key: str, models: list) -> None:
        self.additional_models[key] = models

    def get_additional_models_with_key(self, key: str) -> list:
        return self.additional_models.get(key, [])

    def set_model_patch_replace(
        self, patch: Any, name: str, block_name: str, number: int, transformer_index=None
    ) -> None:
        options = _copied(self.model_options["transformer_options"])
        options.setdefault("patches_replace", {}).setdefault(name, {})[(block_name, number)] = patch
        self.model_options = {"transformer_options": options}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return copy.copy(value) if isinstance(value, list) else value


def run(
    patcher: Patcher,
    sigmas: list[float],
    *,
    size: tuple[int, int, int] = (3, 24, 32),
    batch: int = 1,
    text: int = 32,
    sample_sigmas: list[float] | None = None,
    **conditions: Any,
) -> list[torch.Tensor]:
    """Call the model once per sigma, as a sampler does, and return the results."""
    x = torch.randn(batch, 16, *size, generator=torch.Generator().manual_seed(0))
    context = torch.randn(batch, text, patcher.model.diffusion_model.dim, generator=torch.Generator().manual_seed(1))
    results = []
    for callback in _all(patcher.callbacks, "on_pre_run"):
        callback(patcher)
    try:
        for sigma in sigmas:
            options = _copied(patcher.model_options["transformer_options"])
            options["wrappers"] = patcher.wrappers
            options["sigmas"] = torch.full((batch,), sigma)
            options["sample_sigmas"] = torch.tensor(sample_sigmas or [*sigmas, 0.0])
            options["cond_or_uncond"] = [0]
            results.append(
                patcher.model.diffusion_model.forward(
                    x,
                    options["sigmas"] * 1000,
                    context,
                    None,
                    conditions.pop("time_dim_concat", None),
                    options,
                    **conditions,
                )
            )
    finally:
        for callback in _all(patcher.callbacks, "on_cleanup"):
            callback(patcher)
    return results


def _all(callbacks: dict, kind: str) -> list:
    return [c for by_key in callbacks.get(kind, {}).values() for c in by_key]


def observe(call: Any) -> dict[str, Any]:
    """Return what an override, a block patch and a wrapper see while ``call(override, block_patch, wrapper)`` runs."""
    seen: dict[str, Any] = {"calls": []}

    def override(func, q, k, v, *args, **kwargs):
        seen["calls"].append([list(q.shape), list(k.shape), len(args), sorted(kwargs)])
        return func(q, k, v, *args, **kwargs)

    def block_patch(args, extra):
        seen.setdefault("block_args", sorted(args))
        seen.setdefault("block_extra", sorted(extra))
        seen.setdefault("img", list(args["img"].shape))
        return extra["original_block"](args)

    def wrapper(executor, *args, **kwargs):
        model = executor.class_obj
        seen.setdefault("positional", len(args))
        seen.setdefault("options_last", isinstance(args[-1], dict))
        seen.setdefault("class", type(model).__name__)
        seen.setdefault("attributes", [len(model.blocks), model.num_heads, model.dim, list(model.patch_size)])
        seen.setdefault("sigmas", list(args[-1]["sigmas"].shape))
        seen.setdefault("x", list(args[0].shape))
        result = executor(*args, **kwargs)
        seen.setdefault("options", sorted(set(args[-1]) & OPTION_KEYS))
        return result

    call(override, block_patch, wrapper)
    return seen


OPTION_KEYS = {"grid_sizes", "block_index", "sigmas", "sample_sigmas", "cond_or_uncond"}
PATCHER_METHODS = (
    "clone", "get_model_object", "set_attachments", "get_attachment",
    "add_wrapper_with_key", "remove_wrappers_with_key", "add_callback_with_key", "remove_callbacks_with_key",
    "set_model_patch_replace", "set_additional_models", "get_additional_models_with_key",
)  # fmt: skip
