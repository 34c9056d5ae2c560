"""What other packs do to a Wan model, in a few lines each: written for these tests, one function per idiom.

Each takes a MODEL and returns a patched clone, as a node does; ``seen`` lists what the neighbor itself did.
"""

from __future__ import annotations

import types
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.ops
import comfy.patcher_extension
import torch
from comfy.ldm.flux.math import apply_rope1

OVERRIDE = "optimized_attention_override"


def plain_backend(model: Any, seen: list) -> Any:
    """A node that chooses the attention backend: assigns the override, whatever stood there."""

    def override(func, *args, **kwargs):
        seen.append(tuple(args[1].shape))
        return attention.attention_pytorch.__wrapped__(*args, **kwargs)

    m = model.clone()
    m.model_options["transformer_options"][OVERRIDE] = override
    return m


def other_sparse(model: Any, seen: list) -> Any:
    """A sparse attention of another kind: chains, and puts itself on top again before every step."""
    installed: set = set()

    def install(options: dict) -> None:
        previous = options.get(OVERRIDE)
        if previous in installed:
            return

        def override(func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, **kwargs):
            seen.append((tuple(q.shape), tuple(k.shape)))
            args, kw = (q, k, v, heads), {"mask": mask, "attn_precision": attn_precision, "skip_reshape": skip_reshape}
            return func(*args, **kw, **kwargs) if previous is None else previous(func, *args, **kw, **kwargs)

        installed.add(override)
        options[OVERRIDE] = override

    m = model.clone()
    install(m.model_options["transformer_options"])
    callbacks = comfy.patcher_extension.CallbacksMP
    m.add_callback_with_key(
        callbacks.ON_PREPARE_STATE,
        "other_sparse",
        lambda patcher, *_: install(patcher.model_options["transformer_options"]),
    )
    m.add_callback_with_key(callbacks.ON_CLEANUP, "other_sparse", lambda _: None)
    return m


def attention_patches(model: Any, seen: list) -> Any:
    """Control by patches on the output of self-attention and after cross-attention."""
    m = model.clone()

    def self_output(args):
        seen.append("attn1")
        return args["x"] * 1.05

    def after_cross(args):
        seen.append("attn2")
        return args["x"] + 0.01

    m.set_model_patch(self_output, "attn1_patch")
    m.set_model_patch(after_cross, "attn2_patch")
    return m


def block_control(model: Any, seen: list) -> Any:
    """Control by a patch around each block that chains and adds something to its output."""
    m = model.clone()
    for i in range(len(m.get_model_object("diffusion_model").blocks)):
        present = m.model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
        inner = present.get(("double_block", i))

        def patch(args, extra, inner=inner, i=i):
            seen.append(i)
            out = inner(args, extra) if inner is not None else extra["original_block"](args)
            return {"img": out["img"] + 0.01}

        m.set_model_patch_replace(patch, "dit", "double_block", i)
    return m


def _self_attention(module: Any, x: Any, freqs: Any, options: dict | None, compute: Any) -> Any:
    shape = (*x.shape[:2], module.num_heads, module.head_dim)
    q = apply_rope1(module.norm_q(module.q(x)).view(shape), freqs).flatten(2)
    k = apply_rope1(module.norm_k(module.k(x)).view(shape), freqs).flatten(2)
    return module.o(compute(q, k, module.v(x), module.num_heads, options))


def patched_forward(model: Any, seen: list, *, own: bool) -> Any:
    """A forward of its own for every ``self_attn``: through the host's attention, or ``own`` through another one."""

    def compute(q, k, v, heads, options):
        seen.append(tuple(q.shape))
        if own:
            return attention.attention_pytorch.__wrapped__(q, k, v, heads)
        return attention.optimized_attention(q, k, v, heads=heads, transformer_options=options)

    def forward(self, x, freqs, transformer_options=None):
        return _self_attention(self, x, freqs, transformer_options or {}, compute) * 1.02

    m = model.clone()
    for i, block in enumerate(m.get_model_object("diffusion_model").blocks):
        m.add_object_patch(f"diffusion_model.blocks.{i}.self_attn.forward", types.MethodType(forward, block.self_attn))
    return m


def cached_forward(model: Any, seen: list, every: int = 2) -> Any:
    """Caching by a forward of its own that runs the blocks without the options, and only every other step."""
    state: dict = {}

    def forward_orig(self, x, t, context, clip_fea=None, freqs=None, transformer_options=None, **kwargs):
        replace = (transformer_options or {}).get("patches_replace", {}).get("dit", {})
        x = self.patch_embedding(x.float()).to(x.dtype)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        e = self.time_embedding(_sinusoid(self.freq_dim, t).to(x.dtype))
        e0 = self.time_projection(e).unflatten(1, (6, self.dim))
        context = self.text_embedding(context)
        state["calls"] = state.get("calls", -1) + 1
        if state["calls"] % every:
            x = x + state["residual"]
        else:
            before = x
            for i, block in enumerate(self.blocks):
                seen.append(i)

                def original(args, block=block):
                    return {"img": block(args["img"], context=args["txt"], e=args["vec"], freqs=args["pe"])}

                args = {"img": x, "txt": context, "vec": e0, "pe": freqs}
                extra = {"original_block": original, "transformer_options": transformer_options}
                x = (replace[("double_block", i)](args, extra) if ("double_block", i) in replace else original(args))[
                    "img"
                ]
            state["residual"] = x - before
        return self.unpatchify(self.head(x, e), grid)

    m = model.clone()
    inner = m.get_model_object("diffusion_model")

    def around(function, parameters):
        kept = inner.__dict__.get("forward_orig")
        inner.forward_orig = types.MethodType(forward_orig, inner)
        try:
            return function(parameters["input"], parameters["timestep"], **parameters["c"])
        finally:
            if kept is None:
                del inner.forward_orig

    m.set_model_unet_function_wrapper(around)
    return m


def _sinusoid(size: int, t: Any) -> Any:
    from comfy.ldm.wan.model import sinusoidal_embedding_1d

    return sinusoidal_embedding_1d(size, t)


def swapped_blocks(model: Any, seen: list) -> Any:
    """Block swap: every block's weights come for its forward and go again."""
    m = model.clone()
    for i, block in enumerate(m.get_model_object("diffusion_model").blocks):
        original = block.forward

        def forward(*args, original=original, block=block, i=i, **kwargs):
            seen.append(i)
            kept = {name: value.data for name, value in block.named_parameters()}
            for _, value in block.named_parameters():
                value.data = value.data.clone()
            try:
                return original(*args, **kwargs)
            finally:
                for name, value in block.named_parameters():
                    value.data = kept[name]

        m.add_object_patch(f"diffusion_model.blocks.{i}.forward", forward)
    return m


class PackedOps(comfy.ops.manual_cast):
    """Operations whose Linear keeps 8-bit codes with a scale per row and unpacks them in forward, as GGUF packs do."""

    class Linear(comfy.ops.manual_cast.Linear):
        """A Linear that loads any weight into codes."""

        def _load_from_state_dict(self, state, prefix, *args, **kwargs):
            weight = state.pop(prefix + "weight").float()
            self.scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
            self.codes = (weight / self.scale).round().to(torch.int8)
            self.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            bias = state.pop(prefix + "bias", None)
            self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

        def forward(self, x):
            weight = (self.codes.float() * self.scale).to(x.dtype)
            return torch.nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
