"""The greedy search of a pattern per head while a model samples (Sparse-vDiT, arXiv 2506.03065, algorithm 1).

Whoever runs the model calls ``HeadSearch.attend`` in place of each self-attention: it computes dense attention and
every candidate, adds the errors to what earlier calls found for the same band, branch and layer, chooses per head, and
returns the *chosen* output, so that later layers and steps see what they will see in use. With one prompt and one step
per band that is algorithm 1; with more, choices follow the mean error so far, and the table the mean over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..attention import fps_attention
from ..grid import Tiling, TokenGrid, choose_tiling
from ..head_table import MAX_PATTERNS, Band, HeadTable
from ..pattern_text import format_pattern
from ..patterns import Pattern, pattern_pairs
from ..plan import AttentionPlan, BlockLists, Plans, plans_for
from ..schedule import Schedule, first_reaching
from .candidates import CandidateError, distinct
from .rule import FULL, Rule, meet_budget

ERRORS = ("normalized", "mse")
# Takes weights that whoever runs the model measures.
OUTPUT = "output"
AGGREGATES = ("mean", "max")
BRANCHES = ("joint", "separate")


@dataclass(frozen=True)
class Request:
    """What is searched.

    ``schedule`` says ``heads`` where patterns are wanted, and how they run there; ``bands`` are the sigmas down to
    which each choice holds. ``error`` is 'normalized' (a head's mean squared error over the mean power of the layer's
    full heads), 'output' (that times what the layer's error does to the model's output, see ``HeadSearch.weights``), or
    'mse' (the paper's). ``aggregate`` says how samples and steps of a band are joined. ``branches``: one choice for
    prompt and negative prompt, or one each. Layers in ``dense_layers`` stay full. With a ``budget`` (mean cost,
    full = 1) lambda is found in place of ``rule``.
    """

    schedule: Schedule
    bands: tuple[float, ...]
    candidates: tuple[Pattern, ...]
    rule: Rule = field(default_factory=Rule)
    error: str = "normalized"
    aggregate: str = "mean"
    branches: str = "joint"
    dense_layers: frozenset[int] = frozenset()
    budget: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (("error", (*ERRORS, OUTPUT)), ("aggregate", AGGREGATES), ("branches", BRANCHES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is '{getattr(self, name)}'; choose {' or '.join(choices)}.")
        if not self.schedule.uses_heads:
            raise ValueError(
                "the schedule never says 'heads', so nothing is searched; write for example 0 fp8 x1 heads."
            )
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError(f"the budget is {self.budget:g}; it is a mean cost above 0 and up to 1, where full is 1.")
        if not self.bands or self.bands[-1] != 0 or any(b >= a for a, b in zip((np.inf, *self.bands), self.bands)):
            raise ValueError(f"the bands end at {', '.join(f'{b:g}' for b in self.bands)}; they fall from 1 to 0.")


def step_bands(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Return one band per step of a run whose steps start at ``sigmas`` (without the final zero): a step's band reaches
    half-way to the next one, so that runs of other step counts take the nearest."""
    return (*((a + b) / 2 for a, b in pairwise(sigmas)), 0.0)


def phase_bands(schedule: Schedule) -> tuple[float, ...]:
    """Return one band per phase of ``schedule``."""
    return tuple(phase.until for phase in schedule.phases)


class HeadSearch:
    """The search on one model and grid. ``costs`` are relative to full attention, in the order of ``candidates``.

    ``candidates`` are the request's, full first, without those that are the same on this grid.
    """

    def __init__(
        self,
        request: Request,
        grid: TokenGrid,
        layers: int,
        heads: int,
        *,
        slots: int = 64,
        tile: tuple[int, int, int] | None = None,
        smooth_k: bool = True,
        backend: str = "auto",
    ) -> None:
        self.request, self.grid, self.layers, self.heads, self.slots = request, grid, layers, heads, slots
        self.tiling = choose_tiling(grid, slots, tile)
        self.candidates = distinct(request.candidates, self.tiling)
        if len(self.candidates) > MAX_PATTERNS:
            raise CandidateError(
                f"{len(self.candidates)} candidates, a head table holds {MAX_PATTERNS}; leave some out."
            )
        self.backend, self.smooth_k = backend, smooth_k
        self.costs = self.densities.copy()
        branches = 2 if request.branches == "separate" else 1
        shape = (len(request.bands), branches, layers, heads, len(self.candidates))
        self.sums, self.counts = np.zeros(shape), np.zeros(shape[:3], dtype=np.int64)
        # (bands, layers): the model's relative squared output error per normalized error of a layer, for 'output'.
        self.weights = np.ones((len(request.bands), layers))
        # What an earlier pass chose, (bands, branches, layers, heads): passed on in place of this pass's own choice.
        self.fixed: np.ndarray | None = None
        self._lists: dict[torch.device, BlockLists] = {}

    @property
    def densities(self) -> np.ndarray:
        """The exact density of every candidate."""
        return np.array(_densities(self.candidates, self.tiling))

    @property
    def errors(self) -> np.ndarray:
        """Errors per (band, branch, layer, head, candidate) so far; NaN where the run never came."""
        counts = self.counts[..., None, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self.sums / counts if self.request.aggregate == "mean" else np.where(counts > 0, self.sums, np.nan)
        return means * self.weights[:, None, :, None, None]

    def searches(self, sigma: float, layer: int) -> bool:
        """Return whether patterns are wanted at ``sigma`` in ``layer``; elsewhere the model's own attention runs."""
        return self.request.schedule.at(sigma)[1].uses_heads and layer not in self.request.dense_layers

    @torch.no_grad()
    def attend(
        self,
        layer: int,
        sigma: float,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        branches: Sequence[int] = (0,),
    ) -> torch.Tensor:
        """Return the chosen output of self-attention, (B, S, H, D) as q, k, v after RoPE.

        ``branches`` says per sample, or once for all, whether it is of the prompt (0) or the negative prompt (1).
        """
        band = self._band(sigma)
        plan = self._plan(sigma, q.device)
        # Algorithm 1 compares with full attention. In the same numerics, because what FP8 loses is no pattern's fault.
        full = fps_attention(q, k, v, self._only(plan, FULL), backend=self.backend)
        power = _mean_square(full)
        errors = np.zeros((q.shape[0], self.heads, len(self.candidates)))
        for index in range(FULL + 1, len(self.candidates)):
            out = fps_attention(q, k, v, self._only(plan, index), backend=self.backend)
            errors[..., index] = _mean_square(out.sub_(full))
        if self.request.error != "mse":
            errors /= _scale(power)[:, None, None]
        separate = self.sums.shape[1] > 1
        rows = np.broadcast_to(np.asarray(branches), (q.shape[0],)) if separate else np.zeros(q.shape[0], int)
        for sample, branch in zip(errors, rows):
            self._add(band, int(branch), layer, sample)
        chosen = np.stack([self._now(band, int(branch), layer) for branch in rows])
        return fps_attention(q, k, v, self._with(plan, chosen), backend=self.backend)

    @torch.no_grad()
    def probe(
        self, index: int, sigma: float, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """Return the output with candidate ``index`` in every head, and its normalized error summed over heads and
        averaged over samples: what measuring ``weights`` takes."""
        plan = self._plan(sigma, q.device)
        full = fps_attention(q, k, v, self._only(plan, FULL), backend=self.backend)
        out = fps_attention(q, k, v, self._only(plan, index), backend=self.backend)
        return out, float((_mean_square(out - full).sum(1) / _scale(_mean_square(full))).mean())

    def choose(self) -> tuple[np.ndarray, float, float | None]:
        """Return the choices by all errors so far, int64 ``(bands, branches, layers, heads)``, with lambda and epsilon.

        Where the run never came, in layers that stay dense, and where no other candidate has a finite error, that is
        full attention; a budget is about the others.
        """
        errors, request = self.errors, self.request
        known = np.isfinite(errors[..., FULL + 1 :]).any(-1)
        chosen = np.full(known.shape, FULL, dtype=np.int64)
        if request.budget is None:
            chosen[known] = request.rule.choose(errors[known], self.costs)
            return chosen, request.rule.lam, request.rule.epsilon
        # A band counts as often as it was reached: a budget is a mean over the run.
        weights = np.broadcast_to(self.counts[..., None], known.shape)[known].astype(np.float64)
        chosen[known], lam = meet_budget(errors[known], self.costs, request.budget, weights)
        return chosen, lam, None

    def table(self, model: str = "", made: dict[str, Any] | None = None) -> HeadTable:
        """Return the head table of what was found."""
        chosen, lam, epsilon = self.choose()
        used, packed = np.unique(chosen, return_inverse=True)
        packed = packed.reshape(chosen.shape).astype(np.uint8)
        errors = np.take_along_axis(self.errors, chosen[..., None], -1)[..., 0]
        found = {
            "lambda": lam, "epsilon": lam if epsilon is None else epsilon, "budget": self.request.budget,
            "error": self.request.error, "aggregate": self.request.aggregate, "branches": self.request.branches,
            "candidates": [format_pattern(p) for p in self.candidates],
            "costs": [round(float(c), 6) for c in self.costs],
            "mean_cost": float(self.costs[chosen].mean()), "mean_density": float(self.densities[chosen].mean()),
            "mean_error": float(np.nanmean(errors)) if np.isfinite(errors).any() else None,
        }  # fmt: skip
        return HeadTable(
            patterns=tuple(self.candidates[i] for i in used),
            bands=tuple(Band(until, each) for until, each in zip(self.request.bands, packed)),
            grid=self.grid,
            tile=self.tiling.tile,
            slots=self.slots,
            schedule=self.request.schedule,
            model=model,
            made={**found, **(made or {})},
        )

    def state(self) -> dict[str, np.ndarray]:
        """Return what a search needs to go on later; ``load`` takes it."""
        state = {"sums": self.sums.copy(), "counts": self.counts.copy(), "costs": self.costs, "weights": self.weights}
        return state if self.fixed is None else {**state, "fixed": self.fixed}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Go on from ``state``; raises ValueError if it is of another search."""
        shapes = {name: getattr(self, name).shape for name in ("sums", "counts", "costs", "weights")}
        if "fixed" in state:
            shapes["fixed"] = self.sums.shape[:-1]
        if any(name not in state or state[name].shape != shape for name, shape in shapes.items()):
            raise ValueError("the saved search is of another model, grid or set of candidates; start anew.")
        self.sums, self.counts = state["sums"].copy(), state["counts"].copy()
        self.costs, self.weights = state["costs"].copy(), state["weights"].copy()
        self.fixed = state.get("fixed")

    def next_pass(self) -> None:
        """Measure anew along the trajectory of the present choices, which a budget found only at the end of a pass."""
        self.fixed = self.choose()[0]
        self.sums[:], self.counts[:] = 0.0, 0

    def _band(self, sigma: float) -> int:
        return first_reaching(self.request.bands, sigma)

    def _add(self, band: int, branch: int, layer: int, errors: np.ndarray) -> None:
        place = (band, branch, layer)
        self.sums[place] = (
            np.maximum(self.sums[place], errors) if self.request.aggregate == "max" else self.sums[place] + errors
        )
        self.counts[place] += 1

    def _now(self, band: int, branch: int, layer: int) -> np.ndarray:
        """Return what a call passes on: the earlier pass's choice, or the rule on the errors so far."""
        if self.fixed is not None:
            return self.fixed[band, branch, layer]
        errors = self.errors[band, branch, layer]
        if self.request.budget is None:
            return self.request.rule.choose(errors, self.costs)
        # What a budget costs is known when everything was measured: until then every layer meets it alone, or comes as
        # near as it can.
        chosen = np.full(self.heads, FULL)
        usable = np.isfinite(errors)
        known = usable[:, FULL + 1 :].any(-1)
        if known.any():
            least = np.where(usable, self.costs, np.inf)[known].min(-1).mean()
            chosen[known] = meet_budget(errors[known], self.costs, max(self.request.budget, float(least)))[0]
        return chosen

    def _plan(self, sigma: float, device: torch.device) -> AttentionPlan:
        """Return a plan of this sigma's phase with the lists of all candidates."""
        plan = self._plans().at(sigma, 0, device)
        if device not in self._lists:
            self._lists[device] = BlockLists.from_patterns(
                self.candidates, self.tiling, np.zeros((1, self.heads)), device
            )
        return replace(plan, lists=self._lists[device])

    def _plans(self) -> Plans:
        # Layout, attention and granularity are the phase's; a window in place of the word makes them.
        phases = tuple(
            replace(phase, selector=None, window=(1, 1, 1)) if phase.uses_heads else phase
            for phase in self.request.schedule.phases
        )
        tiles = {"slots": self.slots, "tile": self.tiling.tile, "smooth_k": self.smooth_k}
        return plans_for(Schedule(phases), self.grid, self.heads, **tiles)

    def _only(self, plan: AttentionPlan, index: int) -> AttentionPlan:
        return self._with(plan, np.full((1, self.heads), index))

    def _with(self, plan: AttentionPlan, chosen: np.ndarray) -> AttentionPlan:
        of_head = torch.from_numpy(chosen.astype(np.int32)).to(plan.lists.ids.device)
        return replace(plan, lists=replace(plan.lists, pattern_of_head=of_head))


def _densities(candidates: Sequence[Pattern], tiling: Tiling) -> list[float]:
    return [pattern_pairs(pattern, tiling) / float(tiling.grid.tokens) ** 2 for pattern in candidates]


def _scale(power: np.ndarray) -> np.ndarray:
    """Return what errors of samples are divided by, ``(B,)``, from the heads' mean squares ``(B, H)``.

    A layer whose output is zero loses nothing, whatever is left out. Where the output is not finite no error means
    anything: NaN, so that no head of the layer takes an infinite neighbour for a licence.
    """
    mean = power.mean(1)
    return np.where(np.isfinite(mean), np.maximum(mean, np.finfo(np.float32).tiny), np.nan)


def _mean_square(x: torch.Tensor) -> np.ndarray:
    """Return the mean square per sample and head, float64 ``(B, H)``, of ``(B, S, H, D)``."""
    return x.float().square().mean((1, 3)).double().cpu().numpy()
