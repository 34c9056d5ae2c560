"""Backends: what each needs, why one cannot run, and which one ``auto`` takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..quantize.fp8 import channel_scales, group_scales, to_tiles, token_mean, true_quantize
from . import reference, triton_forward

BACKENDS = ("auto", "triton-fp8", "triton-bf16", "reference")
HEAD_DIMS = (64, 128)


class BackendError(ValueError):
    """No backend, or not the named one, can run a call; the message names every backend and its reason."""


@dataclass(frozen=True)
class _Needs:
    """A backend's constraints as data."""

    attention: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    triton: bool
    capability: tuple[int, int] | None = None


_NEEDS = {
    "triton-fp8": _Needs(("fp8",), (torch.bfloat16, torch.float16), True, (8, 9)),
    "triton-bf16": _Needs(("bf16", "fp8"), (torch.bfloat16, torch.float16), True, (8, 0)),
    "reference": _Needs(("bf16", "fp8"), (torch.float32, torch.bfloat16, torch.float16), False),
}


class TritonLists(NamedTuple):
    """The lists as the Triton launcher takes them."""

    ids: torch.Tensor
    count: torch.Tensor
    pattern_of_head: torch.Tensor


class TritonLayout(NamedTuple):
    """The layout as the Triton launcher takes it."""

    index: torch.Tensor
    live: torch.Tensor


def _why_not(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, attention: str) -> str | None:
    needs = _NEEDS[name]
    if attention not in needs.attention:
        return f"computes {' or '.join(needs.attention)} attention, not {attention}"
    if head_dim not in HEAD_DIMS:
        return f"takes a head dimension of {' or '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    if dtype not in needs.dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in needs.dtypes)
        return f"takes {names}, not {str(dtype).removeprefix('torch.')}"
    if not needs.triton:
        return None
    reason = triton_forward.available(device)
    if reason or triton_forward.interpreted():
        return reason
    capability = torch.cuda.get_device_capability(device)
    if capability < needs.capability:
        have, want = (".".join(map(str, c)) for c in (capability, needs.capability))
        return f"needs compute capability {want}, this card has {have}"
    return None


def backends(
    device: torch.device | str, dtype: torch.dtype, head_dim: int, attention: str
) -> list[tuple[str, str | None]]:
    """Return every backend, best first, with the reason why it cannot run such a call (None: it can)."""
    device = torch.device(device)
    return [(name, _why_not(name, device, dtype, head_dim, attention)) for name in _NEEDS]


def resolve_backend(
    backend: str, device: torch.device | str, dtype: torch.dtype, head_dim: int, attention: str
) -> tuple[str, str | None]:
    """Return the backend that will run and, if 'auto' had to fall back, a sentence that says to what and why.

    Raises BackendError if a named backend cannot run, or none can.
    """
    if backend not in BACKENDS:
        raise BackendError(f"'{backend}' is no backend; choose one of {', '.join(BACKENDS)}.")
    table = backends(device, dtype, head_dim, attention)
    reasons = dict(table)
    listing = "; ".join(f"{name}: {reason or 'can run'}" for name, reason in table)
    if backend != "auto":
        if reasons[backend]:
            raise BackendError(f"the backend '{backend}' cannot run here ({listing}); choose another, or auto.")
        return backend, None
    for name, reason in table:
        if reason is None:
            best = f"triton-{attention}"
            if name == best or torch.device(device).type == "cpu":
                return name, None
            return name, f"{name} runs in place of {best} ({reasons[best]})."
    raise BackendError(f"no backend can run this attention ({listing}); leave it dense.")


def run_forward(
    backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: reference.Spec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(out, lse, rowmax)`` of the named backend."""
    if backend == "reference":
        return reference.forward(q, k, v, spec)
    lists = TritonLists(spec.ids, spec.count, spec.pattern_of_head)
    layout = TritonLayout(spec.index, spec.live)
    scale = 1.0 / math.sqrt(q.shape[-1])
    if backend == "triton-bf16":
        return triton_forward.forward_bf16(q, k, v, layout, lists, scale=scale, return_lse=True)
    width = spec.index.shape[1]
    rows = max(triton_forward.MIN_SLOTS["fp8"], 1 << (width - 1).bit_length())
    padded = torch.nn.functional.pad(spec.index, (0, rows - width), value=-1)
    quantized = quantize_tiles(q, k, v, padded, spec)
    layout = TritonLayout(padded, spec.live)
    return triton_forward.forward_fp8(
        *quantized, layout, lists, tokens=q.shape[1], scale=scale, out_dtype=q.dtype, return_lse=True
    )


def quantize_tiles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, index: torch.Tensor, spec: reference.Spec
) -> tuple[torch.Tensor, ...]:
    """Return what an FP8 kernel reads: ``q8, k8 (B,H,tiles*slots,D)``, ``v8 (B,H,D,tiles*slots)`` as e4m3 with dead
    rows 0, the scales of q and k (``(B,H,tiles*slots)`` for 'token', else ``(B,H,tiles)``) and of v ``(B,H,D)``."""
    qt, kt, vt = (to_tiles(x, index) for x in (q, k, v))
    if spec.smooth_k:
        kt -= token_mean(k)
        kt.masked_fill_((index < 0)[None, None, :, :, None], 0.0)
    scales = [group_scales(x, spec.granularity, spec.cube, spec.cubes) for x in (qt, kt)]
    v_scale = channel_scales(vt)
    q8, k8 = (true_quantize(x, s).flatten(2, 3) for x, s in zip((qt, kt), scales))
    v8 = true_quantize(vt, v_scale).flatten(2, 3).transpose(-1, -2).contiguous()
    flat = [s.reshape(*s.shape[:2], -1) for s in scales]
    return q8, k8, v8, *flat, v_scale.reshape(*v_scale.shape[:2], -1)
