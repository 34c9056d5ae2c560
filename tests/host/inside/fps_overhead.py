"""What the patch costs on the real host: 40 blocks of one token, so that only the host's own time is left."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from fps_common import PACK, apply, model_of, pack_module, run_cases

BLOCKS = 40
OVERRIDE = "optimized_attention_override"

_PATH = Path(PACK) / "tests" / "nodes" / "interleaved.py"
_SPEC = importlib.util.spec_from_file_location("fps_interleaved", _PATH)
interleaved = importlib.util.module_from_spec(_SPEC)
sys.modules["fps_interleaved"] = interleaved
_SPEC.loader.exec_module(interleaved)

MODEL = model_of(layers=BLOCKS, dim=128)


def caller(model: Any) -> Any:
    """A function that calls the diffusion model once, as a sampler does in the middle of a run."""
    inner = model.model.diffusion_model
    x, context = torch.randn(1, 16, 1, 8, 8), torch.zeros(1, 4, 4096)
    template = dict(model.model_options["transformer_options"])
    template |= {
        "wrappers": model.wrappers,
        "sigmas": torch.full((1,), 0.5),
        "sample_sigmas": torch.linspace(1, 0, 21),
        "cond_or_uncond": [0],
    }
    model.pre_run()
    return lambda: inner(x, torch.full((1,), 500.0), context, transformer_options=dict(template))


def _result(plain: Any, patched: Any, what: str, times: float = 1) -> dict:
    result = interleaved.added(caller(plain), caller(patched))
    return {"line": result.line(what, BLOCKS, times), "within": result.within(BLOCKS, times)}


def case_dense() -> dict:
    """The host itself loads the compiler, so what keeps it out is part of the price."""
    return _result(MODEL, apply(MODEL, "0.00 dense"), "dense schedule, 40 blocks")


def case_sparse() -> dict:
    """Everything but the kernel, beside a host whose self-attention costs nothing either."""
    op = pack_module("kernels.attention.op")

    def nothing(backend, q, k, v, spec):
        stats = torch.empty(q.shape[0], q.shape[2], q.shape[1])
        return torch.empty_like(q), stats, stats.clone()

    def pass_self(func, q, k, v, *args, **kwargs):
        return torch.empty_like(q) if q.shape == k.shape else func(q, k, v, *args, **kwargs)

    base = MODEL.clone()
    base.model_options["transformer_options"][OVERRIDE] = pass_self
    kept, op.run_forward = op.run_forward, nothing
    try:
        # A card computes in the meantime, so ten times the bound of a dense step.
        return _result(base, apply(MODEL, "0.00 fp8 x1 1 1 1"), "sparse phase without its kernel, 40 blocks", 10)
    finally:
        op.run_forward = kept


run_cases(globals())
