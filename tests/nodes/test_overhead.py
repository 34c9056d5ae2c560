"""What the patch itself costs on the fake host: 40 blocks of almost nothing, so that only the host's time is left.

The bounds, 50 microseconds per attention call and 5 milliseconds per step, are for steps that stay dense; three times
that fails, with FPS_STRICT=1 the bounds themselves. A sparse phase's time passes while the card computes: ten times.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from fpsattention.kernels.attention import op
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.head_table import Band, HeadTable
from fpsattention.kernels.pattern_text import parse_pattern
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes.patch import apply_patch
from fpsattention.nodes.settings import Settings

BLOCKS, SPARSE = 40, 10

_SPEC = importlib.util.spec_from_file_location("fps_interleaved", Path(__file__).parent / "interleaved.py")
interleaved = importlib.util.module_from_spec(_SPEC)
__import__("sys").modules["fps_interleaved"] = interleaved
_SPEC.loader.exec_module(interleaved)


def patched(host, text: str, table: HeadTable | None = None):
    model = host.Patcher(host.WanModel(heads=1, layers=BLOCKS))
    return apply_patch(model, Settings(Schedule.parse(text), "the test", table=table))


def caller(host, model, size=(1, 8, 8)):
    """A function that calls the model once, as a sampler does in the middle of a run."""
    x = torch.randn(1, 16, *size)
    context = torch.randn(1, 4, model.model.diffusion_model.dim)
    template = dict(model.model_options["transformer_options"])
    template |= {"wrappers": model.wrappers, "sigmas": torch.ones(1) * 0.5, "sample_sigmas": torch.linspace(1, 0, 21)}
    for callback in host._all(model.callbacks, "on_pre_run"):
        callback(model)

    def call():
        return model.model.diffusion_model.forward(x, template["sigmas"], context, None, None, dict(template))

    return call


def test_a_dense_schedule(host, show_at_end):
    plain = caller(host, host.Patcher(host.WanModel(heads=1, layers=BLOCKS)))
    result = interleaved.added(plain, caller(host, patched(host, "0.00 dense")))
    show_at_end("what the patch costs, fake host", result.line("dense schedule, 40 blocks", BLOCKS))
    assert result.within(BLOCKS)


def sparse_parts(host, monkeypatch):
    """A function that calls a model without self-attention; the kernel is left out as well."""

    def nothing(backend, q, k, v, spec):
        stats = torch.empty(q.shape[0], q.shape[2], q.shape[1])
        return torch.empty_like(q), stats, stats.clone()

    monkeypatch.setattr(op, "run_forward", nothing)
    base = host.Patcher(host.WanModel(heads=1, layers=BLOCKS))
    base.model_options["transformer_options"]["optimized_attention_override"] = pass_self
    return caller(host, base)


def test_a_sparse_phase_without_its_kernel(host, show_at_end, monkeypatch):
    """Everything but the kernel: plans, markers, override, the op's own way through torch."""
    plain = sparse_parts(host, monkeypatch)
    result = interleaved.added(plain, caller(host, patched(host, "0.00 fp8 x1 all 1 1")))
    show_at_end(
        "what the patch costs, fake host", result.line("sparse phase without its kernel, 40 blocks", BLOCKS, SPARSE)
    )
    assert result.within(BLOCKS, SPARSE)


def test_a_head_table_without_its_kernel(host, show_at_end, monkeypatch):
    """Layers and bands with patterns of their own cost what one window for all does."""
    chosen = np.arange(2 * BLOCKS, dtype=np.uint8).reshape(2, 1, BLOCKS, 1) % 3
    patterns = tuple(map(parse_pattern, ("window all 50% 50%", "skip", "window 1 all all + first 1")))
    bands = (Band(0.5, chosen[0]), Band(0.0, chosen[1]))
    table = HeadTable(patterns, bands, TokenGrid(1, 4, 4), (1, 2, 2), 4)
    plain = sparse_parts(host, monkeypatch)
    result = interleaved.added(plain, caller(host, patched(host, "0.00 fp8 x1 heads", table)))
    show_at_end("what the patch costs, fake host", result.line("head table without its kernel", BLOCKS, SPARSE))
    assert result.within(BLOCKS, SPARSE)


def pass_self(func, q, k, v, *args, **kwargs):
    """An override that spares the dense self-attention, which a sparse phase does not run either."""
    return torch.empty_like(q) if q.shape == k.shape else func(q, k, v, *args, **kwargs)


@pytest.mark.parametrize("kind", ["plain", "patched"])
def test_the_measure_finds_a_known_difference(kind):
    def spin(rounds):
        return sum(range(rounds))

    extra = 200_000 if kind == "patched" else 0
    result = interleaved.added(lambda: spin(50_000), lambda: spin(50_000 + extra), pairs=40)
    # Four times the base was added; above nothing, the interval of nothing lies once in forty times.
    assert (result.low > result.base) == (kind == "patched")
