"""Backends: what each needs, why one cannot run, and which one ``auto`` takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .. import triton_runtime
from ..quantize.fp8 import quantize_tiles
from . import reference, triton_forward
from .spec import Spec

BACKENDS = ("auto", "triton-fp8", "triton-bf16", "reference")
# How a phase that asks for fp8 is rounded by each backend.
FP8_FORM = {"triton-fp8": "e4m3", "triton-bf16": "none", "reference": "e4m3"}
HEAD_DIMS = triton_forward.HEAD_DIMS


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


def _why_not(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, attention: str) -> str | None:
    needs = _NEEDS[name]
    if attention not in needs.attention:
        return f"computes {' or '.join(needs.attention)} attention, not {attention}"
    if needs.triton:
        reason = triton_runtime.available(device) or _card_reason(device, needs)
        if reason:
            return reason
    if head_dim not in HEAD_DIMS:
        return f"takes a head dimension of {' or '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    if dtype not in needs.dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in needs.dtypes)
        return f"takes {names}, not {str(dtype).removeprefix('torch.')}"
    return None


def _card_reason(device: torch.device, needs: _Needs) -> str | None:
    if triton_runtime.interpreted():
        return None
    if torch.version.hip:
        return "needs an NVIDIA card, this one is AMD"
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
    """Return the backend that will run and, where it is not what the phase asks for, a sentence that says so and why.

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
        loses_fp8 = attention == "fp8" and backend == "triton-bf16"
        return backend, "triton-bf16 was chosen, so this fp8 phase runs sparse without FP8." if loses_fp8 else None
    best = f"triton-{attention}"
    for name, reason in table:
        if reason is None:
            return name, None if name == best else f"{name} runs in place of {best} ({reasons[best]})."
    raise BackendError(f"no backend can run this attention ({listing}); leave it dense.")


def run_forward(
    backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(out, lse, rowmax)`` of the named backend."""
    if backend == "reference":
        return reference.forward(q, k, v, spec)
    scale = 1.0 / math.sqrt(q.shape[-1])
    if backend == "triton-bf16":
        return triton_forward.forward_bf16(q, k, v, spec, spec, scale=scale, return_lse=True)
    width = spec.index.shape[1]
    rows = max(triton_forward.MIN_SLOTS["fp8"], 1 << (width - 1).bit_length())
    padded = torch.nn.functional.pad(spec.index, (0, rows - width), value=-1)
    quantized = quantize_tiles(
        q, k, v, padded, granularity=spec.granularity, cube=spec.cube, cubes=spec.cubes, smooth_k=spec.smooth_k
    )
    return triton_forward.forward_fp8(
        *quantized, spec, spec, tokens=q.shape[1], scale=scale, out_dtype=q.dtype, return_lse=True
    )


def run_backward(
    backend: str,
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    rowmax: torch.Tensor,
    spec: Spec,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(dq, dk, dv)`` that match the forward of the named backend."""
    return reference.backward(grad, q, k, v, out, lse, rowmax, spec)
