"""The probe: the model's own q, k and v in chosen steps and layers, while it runs as it always does.

A wrapper around the model call tells step and token grid, a marker around each chosen block tells its self-attention,
and the override hands q, k and v to the row probe after it has let the host's own attention compute the result. So a
probed run is the unprobed one, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ..kernels.grid import TokenGrid
from ..kernels.profiling.cost import Effort
from ..kernels.profiling.errors import ProfileError
from ..kernels.profiling.rows import RowPlan, row_errors
from ..kernels.profiling.table import RowTable
from .around import DIFFUSION_MODEL, Around, Inputs, keep_compilers_out
from .layout import sequence_layout
from .model_call import step_index
from .override import dense_reason

KEY = "fpsattention_profile"


class Probe:
    """Collects row errors. ``prepare`` is asked once, when the first model call shows the token grid; ``spend`` is told
    the seconds of every probe."""

    def __init__(
        self,
        prepare: Callable[[TokenGrid], tuple[RowPlan, Effort]],
        spend: Callable[[float], None] = lambda seconds: None,
    ):
        self.prepare, self.spend = prepare, spend
        self.plan: RowPlan | None = None
        self.effort: Effort | None = None
        self.seconds = 0.0
        # Blocks that the model computed.
        self.blocks = 0
        self.reasons: list[str] = []
        self._found: dict[tuple[int, int], torch.Tensor] = {}

    def install(self, m: Any) -> None:
        """Put the probe on ``m``, a clone that nobody else uses."""
        around = Around(KEY, self._begin, _end)
        m.add_wrapper_with_key(DIFFUSION_MODEL, KEY, around.wrapper())
        for index in range(len(m.get_model_object("diffusion_model").blocks)):
            replace = m.model_options.get("transformer_options", {}).get("patches_replace", {})
            inner = replace.get("dit", {}).get(("double_block", index))
            m.set_model_patch_replace(around.block_patch(index, inner), "dit", "double_block", index)
        keep_compilers_out()

    def finish(self) -> RowTable:
        """Return the table; raises ProfileError, with the reason, if no self-attention could be probed."""
        if not self._found:
            why = self.reasons[0] if self.reasons else "the model was never called"
            raise ProfileError(f"the model's self-attention could not be probed: {why}.")
        table = RowTable(self.plan)
        table.entries = {key: value.cpu().numpy() for key, value in self._found.items()}
        return table

    def _begin(self, inputs: Inputs) -> _Call:
        layout = sequence_layout(inputs.model, inputs.x, inputs.time_dim_concat, inputs.conditions)
        if self.plan is None:
            self.plan, self.effort = self.prepare(layout.grid)
        row = _positive_row(inputs.options, inputs.x.shape[0])
        return _Call(self, self._layers(inputs.options), layout.known, row, inputs.previous)

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

    def measure(self, place: tuple[int, int], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Probe one sample's ``(S, H, D)`` for one place of the table."""
        started = _now(q)
        self._found[place] = row_errors(q, k, v, self.plan)
        seconds = _now(q) - started
        self.seconds += seconds
        self.spend(seconds)


class _Call:
    """One model call with its layers to probe, none in most."""

    def __init__(
        self, probe: Probe, layers: dict[int, tuple[int, int]], known: bool, row: int, previous: Callable | None
    ):
        self.probe, self.layers, self.known, self.row, self.previous = probe, layers, known, row, previous
        self.layer: int | None = None

    @property
    def attends(self) -> bool:
        """True while there is a layer to probe."""
        return bool(self.layers)

    def enter(self, block: int) -> bool:
        """A block begins: its first attention call is its self-attention."""
        self.layer = block
        return True

    def leave(self, block: int) -> None:
        """A block is over."""
        self.layer = None
        self.probe.blocks += 1

    def fail(self) -> None:
        """A block raised an error."""
        self.layer = None

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


def _end(call: _Call) -> None:
    """Nothing is left to count."""


def _positive_row(options: dict, batch: int) -> int:
    """The first sample of the positive prompt in a batch that may hold both prompts."""
    order = options.get("cond_or_uncond") or [0]
    return order.index(0) * (batch // len(order)) if 0 in order else 0


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
