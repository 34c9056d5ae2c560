"""Backends: what each needs, why one cannot run, and which one ``auto`` takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from .. import triton_runtime
from . import reference, triton_backward, triton_forward
from .spec import HEAD_DIMS, Spec

BACKENDS = ("auto", "triton-fp8", "triton-int8", "triton-bf16", "reference")
# How each backend rounds in a phase that asks for fp8.
FP8_FORM = {"triton-fp8": "e4m3", "triton-int8": "int8", "triton-bf16": "none", "reference": "e4m3"}
HALF = (torch.bfloat16, torch.float16)


class BackendError(ValueError):
    """No backend, or not the named one, can run a call; the message names every backend and its reason."""


@dataclass(frozen=True)
class _Needs:
    """A backend's constraints as data; ``cards`` are the first compute capability and the first one too new."""

    attention: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    triton: tuple[int, int] | None = None
    cards: tuple[int, int] | None = None


# Best first. Triton 3.4 is the first whose descriptors are made on the host. Where there are FP8 matrix instructions,
# integers have no use in their place.
_NEEDS = {
    "triton-fp8": _Needs(("fp8",), HALF, (3, 4), (89, 1000)),
    "triton-int8": _Needs(("fp8",), HALF, (3, 4), (80, 89)),
    "triton-bf16": _Needs(("bf16", "fp8"), HALF, (3, 4), (80, 1000)),
    "reference": _Needs(("bf16", "fp8"), (torch.float32, *HALF)),
}
# What force_backend asks for, the innermost last; every use takes its own entry away again, in whatever order they end.
_forced: list[list[str]] = []


def _why_not(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, attention: str) -> str | None:
    needs = _NEEDS[name]
    if attention not in needs.attention:
        return f"computes {' or '.join(needs.attention)} attention, not {attention}"
    if needs.triton:
        reason = triton_runtime.available(device) or _triton_reason(needs) or _card_reason(device, needs)
        if reason:
            return reason
    if head_dim not in HEAD_DIMS:
        return f"takes a head dimension of {' or '.join(map(str, HEAD_DIMS))}, not {head_dim}"
    if dtype not in needs.dtypes:
        names = ", ".join(str(d).removeprefix("torch.") for d in needs.dtypes)
        return f"takes {names}, not {str(dtype).removeprefix('torch.')}"
    return None


def _triton_reason(needs: _Needs) -> str | None:
    # available() has imported it.
    version = getattr(sys.modules.get("triton"), "__version__", "0.0")
    have = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
    if have < needs.triton:
        return f"needs triton {'.'.join(map(str, needs.triton))} or newer, this one is {version}"
    return None


def _card_reason(device: torch.device, needs: _Needs) -> str | None:
    if triton_runtime.interpreted():
        return None
    if torch.version.hip:
        return "needs an NVIDIA card, this one is AMD"
    have = triton_runtime.capability(device)
    first, too_new = needs.cards
    if have < first:
        return f"needs compute capability {first / 10}, this card has {have / 10}"
    if have >= too_new:
        return f"is for cards without FP8, this one has compute capability {have / 10}"
    return None


@lru_cache(maxsize=64)
def _table(device: torch.device, dtype: torch.dtype, head_dim: int, attention: str) -> tuple:
    return tuple((name, _why_not(name, device, dtype, head_dim, attention)) for name in _NEEDS)


def forget_backends() -> None:
    """Ask again what can run: the answers are kept, because a call takes only microseconds."""
    _table.cache_clear()


@contextmanager
def force_backend(backend: str) -> Iterator[None]:
    """While inside, let every call of this process that says 'auto' take ``backend``; BackendError if unknown."""
    if backend not in BACKENDS:
        raise BackendError(f"'{backend}' is no backend; choose one of {', '.join(BACKENDS)}.")
    entry = [backend]
    _forced.append(entry)
    try:
        yield
    finally:
        _forced[:] = [other for other in _forced if other is not entry]


def backends(
    device: torch.device | str, dtype: torch.dtype, head_dim: int, attention: str
) -> list[tuple[str, str | None]]:
    """Return every backend, best first, with the reason why it cannot run such a call (None: it can)."""
    return list(_table(torch.device(device), dtype, head_dim, attention))


def resolve_backend(
    backend: str, device: torch.device | str, dtype: torch.dtype, head_dim: int, attention: str
) -> tuple[str, str | None]:
    """Return the backend that will run and, where it is not what the phase asks for, a sentence that says so and why.

    Raises BackendError if a named backend cannot run, or none can.
    """
    if backend not in BACKENDS:
        raise BackendError(f"'{backend}' is no backend; choose one of {', '.join(BACKENDS)}.")
    backend = requested(backend)
    table = _table(torch.device(device), dtype, head_dim, attention)
    reasons = dict(table)
    if backend != "auto":
        if reasons[backend]:
            listing = _listing(table)
            raise BackendError(f"the backend '{backend}' cannot run here ({listing}); choose another, or auto.")
        loses_fp8 = attention == "fp8" and backend == "triton-bf16"
        return backend, "triton-bf16 was chosen, so this fp8 phase runs sparse without FP8." if loses_fp8 else None
    best = f"triton-{attention}"
    for name, reason in table:
        if reason is None and name == best:
            return name, None
        if reason is None:
            what = ": int8 in place of fp8" if name == "triton-int8" else ""
            return name, f"{name} runs in place of {best} ({reasons[best]}){what}."
    raise BackendError(f"no backend can run this attention ({_listing(table)}); leave it dense.")


# Compiled code takes the answer as a constant and does not look into how it was found. This is all that
# torch.compiler.assume_constant_result does; calling that would import the compiler together with the pack.
resolve_backend._dynamo_marked_constant = True


def choose_backend(
    backend: str, device: torch.device | str, dtype: torch.dtype, head_dim: int, attention: str
) -> tuple[str | None, str | None]:
    """Return what sampling takes: as ``resolve_backend``, but None and the reason where dense attention is faster.

    That is so under 'auto' on a GPU where the plain implementation alone could run: one without Triton, from another
    maker, or too old. On a processor it stands for all others. Raises BackendError as ``resolve_backend`` does.
    """
    name, note = resolve_backend(backend, device, dtype, head_dim, attention)
    if name != "reference" or requested(backend) != "auto" or torch.device(device).type == "cpu":
        return name, note
    why = dict(backends(device, dtype, head_dim, attention))[f"triton-{attention}"]
    return None, f"no fast backend runs here ({why}), and plain PyTorch would be slower than dense"


def chosen_backends(
    device: torch.device | str, dtype: torch.dtype, head_dim: int, backend: str = "auto"
) -> dict[str, str | None]:
    """Return what ``backend`` takes for each kind of sparse attention, None where that stays dense or cannot run."""
    found: dict[str, str | None] = {}
    for attention in ("fp8", "bf16"):
        try:
            found[attention] = choose_backend(backend, device, dtype, head_dim, attention)[0]
        except BackendError:
            found[attention] = None
    return found


def requested(backend: str) -> str:
    """Return the backend that a call names, or the forced one for 'auto'. Compiled code watches this."""
    return _forced[-1][0] if backend == "auto" and _forced else backend


def _listing(table: tuple) -> str:
    """Every backend with its reason; those that share one stand together."""
    names: dict[str, list[str]] = {}
    for name, reason in table:
        names.setdefault(reason or "can run", []).append(name)
    return "; ".join(f"{', '.join(shared)}: {reason}" for reason, shared in names.items())


def run_forward(
    backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(out, lse, rowmax)`` of the named backend."""
    return (reference if backend == "reference" else triton_forward).forward(q, k, v, spec)


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
    implementation = reference if backend == "reference" else triton_backward
    return implementation.backward(grad, q, k, v, out, lse, rowmax, spec)
