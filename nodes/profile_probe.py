"""The probe: the model's own q, k and v in chosen steps and layers, while it runs as it always does.

A wrapper around the model call tells step and token grid, a marker around each chosen block tells its self-attention,
and the override hands q, k and v to the row probe after it has let the host's own attention compute the result. So a
probed run is the unprobed one, bit for bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ..kernels.grid import TokenGrid
from ..kernels.profiling.cost import Effort
from ..kernels.profiling.errors import ProfileError
from ..kernels.profiling.rows import RowPlan, row_errors
from ..kernels.profiling.table import RowTable
from .layout import sequence_layout
from .override import dense_reason
from .patch import DIFFUSION_MODEL, step_index

KEY = "fpsattention_profile"
_OVERRIDE = "optimized_attention_override"


class Probe:
    """Collects row errors. ``prepare`` is asked once, when the first model call shows the token grid."""

    def __init__(self, prepare: Callable[[TokenGrid], tuple[RowPlan, Effort]]):
        self.prepare = prepare
        self.plan: RowPlan | None = None
        self.effort: Effort | None = None
        self.seconds = 0.0
        self.reasons: list[str] = []
        self._found: dict[tuple[int, int], torch.Tensor] = {}
        self._call: _Call | None = None

    def install(self, m: Any) -> None:
        """Put the probe on ``m``, a clone that nobody else uses."""
        current = {"run": self._run, "mark": self._mark}
        if "torch._dynamo" in sys.modules:
            current = {key: torch.compiler.disable(fn, recursive=False) for key, fn in current.items()}
        m.add_wrapper_with_key(
            DIFFUSION_MODEL, KEY, lambda executor, *args, **kw: current["run"](executor, *args, **kw)
        )
        blocks = len(m.get_model_object("diffusion_model").blocks)
        for index in range(blocks):
            replace = m.model_options.get("transformer_options", {}).get("patches_replace", {})
            inner = replace.get("dit", {}).get(("double_block", index))
            m.set_model_patch_replace(_marker(current["mark"], index, inner), "dit", "double_block", index)

    def finish(self) -> RowTable:
        """Return the table; raises ProfileError, with the reason, if no self-attention could be probed."""
        if not self._found:
            why = self.reasons[0] if self.reasons else "the model was never called"
            raise ProfileError(f"the model's self-attention could not be probed: {why}.")
        table = RowTable(self.plan)
        table.entries = {key: value.cpu().numpy() for key, value in self._found.items()}
        return table

    def _run(
        self,
        executor: Any,
        x: Any,
        timestep: Any,
        context: Any,
        clip_fea: Any = None,
        time_dim_concat: Any = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> Any:
        options = {} if transformer_options is None else transformer_options
        layout = sequence_layout(executor.class_obj, x, time_dim_concat, kwargs)
        if self.plan is None:
            self.plan, self.effort = self.prepare(layout.grid)
        layers = self._layers(options)
        previous = options.get(_OVERRIDE)
        if not layers:
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        self._call = _Call(self, layers, layout.known, _positive_row(options, x.shape[0]), previous)
        override = self._call.override
        options[_OVERRIDE] = torch.compiler.disable(override) if "torch._dynamo" in sys.modules else override
        try:
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
        finally:
            self._call = None
            if previous is None:
                options.pop(_OVERRIDE, None)
            else:
                options[_OVERRIDE] = previous

    def _layers(self, options: dict) -> dict[int, tuple[int, int]]:
        """Return the layers to probe in this call with their places in the table: each step once, with guidance in the
        call that holds the positive prompt."""
        sigmas, run = options.get("sigmas"), options.get("sample_sigmas")
        if sigmas is None or run is None or 0 not in options.get("cond_or_uncond", [0]):
            return {}
        step = step_index([float(s) for s in run], float(sigmas.flatten()[0]))
        if step not in self.effort.steps:
            return {}
        return {layer: (step, layer) for layer in self.effort.layers if (step, layer) not in self._found}

    def _mark(self, index: int, inner: Callable | None, args: dict, extra: dict) -> dict:
        call = self._call
        if call is not None:
            call.layer = index
        try:
            return inner(args, extra) if inner is not None else extra["original_block"](args)
        finally:
            if call is not None:
                call.layer = None

    def measure(self, place: tuple[int, int], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Probe one sample's ``(S, H, D)`` for one place of the table."""
        started = _now(q)
        self._found[place] = row_errors(q, k, v, self.plan)
        self.seconds += _now(q) - started


class _Call:
    """One model call with layers to probe."""

    def __init__(
        self, probe: Probe, layers: dict[int, tuple[int, int]], known: bool, row: int, previous: Callable | None
    ):
        self.probe, self.layers, self.known, self.row, self.previous = probe, layers, known, row, previous
        self.layer: int | None = None

    def override(self, func: Callable, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's hook: let the attention run as it would, then look at its inputs."""
        layer, self.layer = self.layer, None
        if self.previous is not None:
            out = self.previous(func, q, k, v, *args, **kwargs)
        else:
            out = func(q, k, v, *args, **kwargs)
        place = self.layers.pop(layer, None)
        if place is not None:
            self._probe(place, q, k, v, args, kwargs)
        return out

    def _probe(self, place: tuple[int, int], q: Any, k: Any, v: Any, args: tuple, kwargs: dict) -> None:
        heads = kwargs.get("heads", args[0] if args else None)
        reason = dense_reason(q, k, v, heads, args, kwargs, self.probe.plan, self.known)
        if reason is not None:
            if reason not in self.probe.reasons:
                self.probe.reasons.append(reason)
            return
        tokens = q.shape[1]
        self.probe.measure(place, *(x[self.row].view(tokens, heads, -1) for x in (q, k, v)))


def _marker(mark: Callable, index: int, inner: Callable | None) -> Callable:
    return lambda args, extra: mark(index, inner, args, extra)


def _positive_row(options: dict, batch: int) -> int:
    """The first sample of the positive prompt in a batch that may hold both prompts."""
    order = options.get("cond_or_uncond") or [0]
    return order.index(0) * (batch // len(order)) if 0 in order else 0


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
