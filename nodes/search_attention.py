"""What stands in for self-attention while a node looks at heads or searches their patterns.

A wrapper around the model call tells sigma, branches of guidance and token grid, a marker around each block tells its
self-attention. A call that cannot be searched runs as the host has it, and the reason is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..kernels.grid import Tiling, TokenGrid
from ..kernels.headsearch.evidence import evidence
from ..kernels.headsearch.gathered import Gathered
from ..kernels.headsearch.search import HeadSearch
from .around import DIFFUSION_MODEL, Around, Inputs, keep_compilers_out
from .layout import sequence_layout
from .model_call import MIXED, REPLACED_ALIKE, replaced_alike, sample_branches
from .override import TAKEN, dense_reason

KEY = "fpsattention_search"
BRANCHES = (
    "the sampler does not say which samples are of the negative prompt, so all counted as the prompt's while searching."
)


class Attention:
    """Sees every self-attention of a run. ``check`` is called before each and may raise; ``blocks`` are those that the
    model computed, ``reasons`` why a call ran as the host has it, ``unknown_branches`` is True once a sampler did not
    say which samples are of the negative prompt."""

    def __init__(self, check: Callable[[], None]):
        self.check = check
        self.grid: TokenGrid | None = None
        self.blocks = 0
        self.reasons: list[str] = []
        self.unknown_branches = False

    def wants(self, sigma: float, layer: int) -> bool:
        """Return whether the self-attention of ``layer`` at ``sigma`` is for us."""
        raise NotImplementedError

    def begin(self, grid: TokenGrid) -> None:
        """The first model call shows the token grid."""
        self.grid = grid

    def attend(
        self, layer: int, sigma: float, qkv: Sequence[torch.Tensor], branches: tuple[int, ...]
    ) -> torch.Tensor | None:
        """Return the output ``(B, S, H, D)``, or None where the host's own attention shall compute it."""
        raise NotImplementedError

    def install(self, m: Any) -> None:
        """Put this on ``m``, a clone that nobody else uses."""
        around = Around(KEY, self._begin, _end)
        m.add_wrapper_with_key(DIFFUSION_MODEL, KEY, around.wrapper())
        for index in range(len(m.get_model_object("diffusion_model").blocks)):
            replace = m.model_options.get("transformer_options", {}).get("patches_replace", {})
            inner = replace.get("dit", {}).get(("double_block", index))
            m.set_model_patch_replace(around.block_patch(index, inner), "dit", "double_block", index)
        keep_compilers_out()

    def decline(self, reason: str) -> None:
        """Keep why a call ran as the host has it."""
        if reason not in self.reasons:
            self.reasons.append(reason)

    def _begin(self, inputs: Inputs) -> _Call:
        layout = sequence_layout(inputs.model, inputs.x, inputs.time_dim_concat, inputs.conditions)
        if self.grid is None:
            self.begin(layout.grid)
        sigma = self._sigma(inputs)
        branches = sample_branches(inputs.options, inputs.x.shape[0])
        return _Call(self, sigma, branches, layout.known, inputs.previous)

    def _sigma(self, inputs: Inputs) -> float | None:
        """Return the sigma of a call that may be searched, or None."""
        sigmas = inputs.options.get("sigmas")
        values = set() if sigmas is None else set(sigmas.flatten().tolist())
        if len(values) != 1 or any(value != value for value in values):
            self.decline(MIXED if len(values) > 1 else "the sampler does not say its sigma")
            return None
        if replaced_alike(inputs.model, self.grid.tokens, inputs.context, inputs.conditions.get("clip_fea")):
            self.decline(REPLACED_ALIKE)
            return None
        return values.pop()


class Look(Attention):
    """Gathers what the heads of the prompt look at, at the sigmas ``wanted``, while the host's own attention runs."""

    def __init__(
        self,
        wanted: Sequence[float],
        tiling_of: Callable[[TokenGrid], Tiling],
        check: Callable[[], None],
        spend: Callable[[float], None],
    ):
        super().__init__(check)
        self.wanted, self.tiling_of, self.spend = wanted, tiling_of, spend
        self.gathered = Gathered()
        self.tiling: Tiling | None = None

    def begin(self, grid: TokenGrid) -> None:
        """Choose the tiles."""
        super().begin(grid)
        self.tiling = self.tiling_of(grid)

    def wants(self, sigma: float, layer: int) -> bool:
        """Only the chosen steps, whatever a sampler evaluates in between."""
        return any(abs(sigma - each) < 1e-6 for each in self.wanted)

    def attend(
        self, layer: int, sigma: float, qkv: Sequence[torch.Tensor], branches: tuple[int, ...]
    ) -> torch.Tensor | None:
        """Look, and leave the result to the host."""
        rows = [row for row in range(qkv[0].shape[0]) if branches[row % len(branches)] == 0]
        if rows and (sigma, layer) not in self.gathered.means:
            started = _now(qkv[0])
            self.gathered.add("0", sigma, layer, evidence(*(x[rows[:1]] for x in qkv), self.tiling))
            self.spend(_now(qkv[0]) - started)
        return None


class Seek(Attention):
    """Searches: every candidate is computed, and the chosen output passed on. ``prepare`` makes the search when the
    first model call shows the token grid."""

    def __init__(self, prepare: Callable[[TokenGrid], HeadSearch], check: Callable[[], None]):
        super().__init__(check)
        self.prepare = prepare
        self.search: HeadSearch | None = None

    def begin(self, grid: TokenGrid) -> None:
        """Make the search."""
        super().begin(grid)
        self.search = self.prepare(grid)

    def wants(self, sigma: float, layer: int) -> bool:
        """Where the schedule says heads."""
        return self.search.searches(sigma, layer)

    def attend(
        self, layer: int, sigma: float, qkv: Sequence[torch.Tensor], branches: tuple[int, ...]
    ) -> torch.Tensor | None:
        """Return the output of the chosen patterns."""
        return self.search.attend(layer, sigma, *qkv, branches)


class _Call:
    """One model call; ``branches`` is None where the sampler does not say them."""

    def __init__(
        self,
        work: Attention,
        sigma: float | None,
        branches: tuple[int, ...] | None,
        known: bool,
        previous: Callable | None,
    ):
        self.work, self.sigma, self.branches, self.known, self.previous = work, sigma, branches, known, previous
        self.layer: int | None = None

    @property
    def attends(self) -> bool:
        """True where attention calls may be for us."""
        return self.sigma is not None

    def enter(self, block: int) -> bool:
        """A block begins: its first attention call is its self-attention."""
        self.layer = block
        return True

    def leave(self, block: int) -> None:
        """A block is over."""
        if self.layer is not None and self.attends and self.work.wants(self.sigma, block):
            self.work.decline(TAKEN)
        self.layer = None
        self.work.blocks += 1

    def fail(self) -> None:
        """A block raised an error."""
        self.layer = None

    def override(self, func: Callable, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's hook: compute the self-attention that is for us, hand everything else on unchanged."""
        layer, self.layer = self.layer, None
        if layer is not None and self.attends and self.work.wants(self.sigma, layer):
            out = self._attend(layer, q, k, v, args, kwargs)
            if out is not None:
                return out
        if self.previous is not None:
            return self.previous(func, q, k, v, *args, **kwargs)
        return func(q, k, v, *args, **kwargs)

    def _attend(self, layer: int, q: Any, k: Any, v: Any, args: tuple, kwargs: dict) -> Any:
        work = self.work
        work.check()
        heads = kwargs.get("heads", args[0] if args else None)
        reason = dense_reason(q, k, v, heads, args, kwargs, work, self.known)
        if reason is not None:
            if q.ndim == k.ndim == 3 and k.shape[1] != q.shape[1] == work.grid.tokens:
                # Cross-attention came first: the self-attention before it never asked.
                reason = TAKEN
            work.decline(reason)
            return None
        if self.branches is None:
            work.unknown_branches = True
        b, s, _ = q.shape
        branches = self.branches or (0,)
        out = work.attend(layer, self.sigma, [x.view(b, s, heads, -1) for x in (q, k, v)], branches)
        return None if out is None else out.reshape(b, s, -1)


def _end(call: _Call) -> None:
    """Nothing is left to count."""


def _now(x: torch.Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
