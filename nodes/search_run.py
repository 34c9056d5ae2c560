"""A search of head patterns on a MODEL: a dense run that looks at the heads, then passes over all prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..kernels.grid import Tiling, TokenGrid, choose_tiling
from ..kernels.head_table import HeadTable
from ..kernels.headsearch.asked import dense_first
from ..kernels.headsearch.candidates import distinct
from ..kernels.headsearch.cost import Call, Costs, pattern_costs
from ..kernels.headsearch.frontier import frontier
from ..kernels.headsearch.gathered import Gathered, evidence_facts, evidence_steps, stripes
from ..kernels.headsearch.rule import FULL
from ..kernels.headsearch.search import HeadSearch, phase_bands, step_bands
from ..kernels.pattern_text import family
from ..kernels.patterns import Pattern
from ..kernels.profiling.errors import ProfileError
from .dense_blocks import check_blocks
from .memory import clear_frames, free_memory, out_of_memory
from .model_facts import compute_dtype
from .model_input import diffusion_model_of
from .own_sampling import Job, OwnSampling
from .profile_checks import check_backend, check_caches, check_conditioning, check_latent, known_grid
from .profile_meter import Meter
from .profile_model import model_shape, without_patch
from .search_attention import BRANCHES, Attention, Look, Seek
from .search_effort import Effort, search_effort
from .search_inputs import HeadSearchError, Wanted
from .search_text import model_name

WHO = "Search Head Patterns"


@dataclass(frozen=True)
class Found:
    """A search's table, the mean cost and density of what was searched (full attention is 1), what other budgets would
    have made of the same errors, and what to say."""

    table: HeadTable
    cost: float
    density: float
    curves: dict[str, tuple[list[float], list[float]]]
    effort: Effort
    seconds: float
    notes: list[str]


def run_search(model: Any, jobs: Sequence[Job], wanted: Wanted, node_id: str | None) -> Found:
    """Return what was found; raises HeadSearchError with one sentence, and leaves ``model`` as it was.

    Out of memory becomes such a sentence as well; the host's memory is freed before.
    """
    try:
        return _search(model, jobs, wanted, node_id)
    except BaseException as error:
        clear_frames(error)
        if isinstance(error, ProfileError):
            raise HeadSearchError(str(error)) from None
        if not out_of_memory(error):
            raise
    # Outside of the handler, whose traceback would keep the memory.
    free_memory()
    raise HeadSearchError(
        "the GPU ran out of memory while searching; search on a smaller or shorter video, whose patterns are carried "
        "to other sizes by rule, or close what else uses the GPU."
    )


def _search(model: Any, jobs: Sequence[Job], wanted: Wanted, node_id: str | None) -> Found:
    diffusion_model_of(model)
    base, patched, header = without_patch(model, WHO)
    for job in jobs:
        check_latent(base, job.latent)
        check_conditioning(positive=job.positive, negative=job.negative)
    shapes = {tuple(job.latent["samples"].shape) for job in jobs}
    if len(shapes) > 1:
        sizes = " and ".join(sorted("x".join(map(str, shape)) for shape in shapes)[:2])
        raise HeadSearchError(f"the latents have different sizes ({sizes}); search on videos of one size.")
    check_caches(base)
    kinds = sorted({phase.attention for phase in wanted.schedule.phases if phase.uses_heads})
    notes = [note for kind in kinds if (note := check_backend(base, kind, "search"))]
    layers = len(base.get_model_object("diffusion_model").blocks)
    check_blocks(wanted.dense_blocks, layers)
    if len(wanted.dense_blocks) == layers:
        raise HeadSearchError(f"dense_blocks names all {layers} blocks, so there is nothing to search; name fewer.")
    if patched:
        notes.append("the patch by FPSAttention (Wan) on the model was left aside while searching.")
    sampling = OwnSampling(base, jobs[0], Meter(base, jobs[0].steps, node_id, WHO, "look at the heads"))
    try:
        return _Work(sampling, jobs, wanted, header, notes).run()
    finally:
        sampling.forget()


class _Work:
    """One search, from its first run to its table."""

    def __init__(self, sampling: OwnSampling, jobs: Sequence[Job], wanted: Wanted, header: Any, notes: list[str]):
        self.sampling, self.jobs, self.wanted, self.notes = sampling, jobs, wanted, notes
        self.meter = sampling.meter
        self.tiles: dict[str, Any] = {} if header is None else {"slots": header.slots, "tile": header.tile}
        self.smooth_k = True if header is None else header.smooth_k
        self.name = model_name(sampling.base)
        self.shape = model_shape(sampling.base)
        model = sampling.base.get_model_object("diffusion_model")
        self.heads, self.head_dim = model.num_heads, model.dim // model.num_heads
        self.device, self.dtype = torch.device(sampling.base.load_device), compute_dtype(sampling.base)
        self.sigmas = _falling(sampling.step_sigmas)
        self.schedule = dense_first(wanted.schedule, self.sigmas, wanted.dense_steps)
        bands = phase_bands(self.schedule) if wanted.bands == "phases" else step_bands(self.sigmas)
        self.request = wanted.request(self.schedule, bands)
        self.seek: Seek | None = None
        self.effort: Effort | None = None
        self.costs: Costs | None = None

    def run(self) -> Found:
        """Look, search, and return what was found."""
        try:
            return self._run()
        finally:
            # Its lists lie on the device, and what ran in the frames of an error may hold the rest.
            if self.seek is not None:
                self.seek.search = None

    def _run(self) -> Found:
        sampling, job = self.sampling, self.jobs[0]
        # Said before the model is loaded, where that can be.
        if (grid := known_grid(sampling.base, sampling.image, job.positive, job.negative)) is not None:
            self._candidates(grid)
        start = time.monotonic()
        gathered = self._look() if self.wanted.stripes else None
        self.seek = Seek(self._prepare, self.meter.check)
        passes = 1 if self.wanted.budget is None else 2
        for number in range(passes):
            for index, job in enumerate(self.jobs):
                self.meter.say(f"pass {number + 1} of {passes}, run {index + 1} of {len(self.jobs)}")
                self._sampled(self.seek, job)
            self._check_searched()
            if number + 1 < passes:
                self.seek.search.next_pass()
        self.meter.finish()
        seconds = time.monotonic() - start
        search = self.seek.search
        table = search.table(self.name, self._made(passes, seconds, gathered))
        # As a budget counts: what was reached often weighs more.
        chosen = search.choose()[0]
        cost, density = (
            float(np.average(each[chosen].mean(-1), weights=search.counts)) for each in (search.costs, search.densities)
        )
        return Found(table, cost, density, frontier(search), self.effort, seconds, self.notes)

    def _tiling(self, grid: TokenGrid) -> Tiling:
        return choose_tiling(grid, self.tiles.get("slots", 64), self.tiles.get("tile"))

    def _candidates(self, grid: TokenGrid) -> list[Pattern]:
        """Return the candidates that differ on ``grid``; raises HeadSearchError if these are too few."""
        tiling = self._tiling(grid)
        found = distinct(self.request.candidates, tiling)
        if not self.wanted.stripes and all(family(pattern) in ("full", "skip") for pattern in found):
            shape = "x".join(map(str, grid.shape))
            raise HeadSearchError(
                f"a video of {shape} tokens in tiles of {'x'.join(map(str, tiling.tile))} is too small: the candidates "
                "are all full or skip; search on a larger one."
            )
        return found

    def _expect(self, grid: TokenGrid) -> None:
        """Tell the meter, and the log, what is going to run."""
        candidates, wanted = self._candidates(grid), self.wanted
        self.effort = effort = search_effort(
            self.request, candidates, self._tiling(grid), self.shape, self.sampling.step_sigmas,
            clips=len(self.jobs), stripes=wanted.stripes,
        )  # fmt: skip
        steps = len(effort.steps)
        # The meter's unit is a step of the first run: dense ones where that looks.
        unit = 1.0 if effort.looks else float(np.mean(effort.steps[:3]))
        looks = len(evidence_steps(len(self.sigmas))) * (self.shape.layers if effort.looks else 0)
        planned = effort.dense_runs * steps / unit
        self.meter.expect(effort.search_steps, steps, planned, effort.sentence(len(candidates)), looks)

    def _look(self) -> Gathered | None:
        """Run dense, look at the heads in some steps, and let their stripes join the candidates."""

        def tiling_of(grid: TokenGrid) -> Tiling:
            self._expect(grid)
            return self._tiling(grid)

        wanted = [self.sigmas[step] for step in sorted(evidence_steps(len(self.sigmas)))]
        look = Look(wanted, tiling_of, self.meter.check, self.meter.spend)
        self._sampled(look, self.jobs[0])
        if not look.gathered.means:
            raise HeadSearchError(self._nothing(look))
        found = stripes(look.gathered, look.tiling, self.wanted.stripes)
        self.request = replace(self.request, candidates=(*self.request.candidates, *found))
        return look.gathered

    def _prepare(self, grid: TokenGrid) -> HeadSearch:
        """Return the search on ``grid``, with its costs."""
        if self.effort is None:
            self._expect(grid)
        search = HeadSearch(
            self.request, grid, self.shape.layers, self.heads, smooth_k=self.smooth_k, **self.tiles
        )  # fmt: skip
        phase = next(phase for phase in self.schedule.phases if phase.uses_heads)
        call = Call(self.device, self.heads, self.head_dim, phase.attention, phase.granularity, self.dtype)
        self.costs = pattern_costs(
            search.candidates, search.tiling, kind=self.wanted.cost, call=call, tick=lambda share: self.meter.check()
        )
        search.costs = self.costs.relative
        least, budget = float(search.costs.min()), self.request.budget
        if budget is not None and budget < least:
            raise HeadSearchError(
                f"a budget of {budget:.1%} cannot be met, the least is {least:.1%}; give more, or candidates that "
                "cost less."
            )
        return search

    def _sampled(self, attention: Attention, job: Job) -> None:
        m = self.sampling.base.clone()
        attention.install(m)
        self.sampling.watch(m, lambda: attention.grid is not None, lambda: attention.blocks)
        self.sampling.sample(m, lambda: True, job)

    def _nothing(self, attention: Attention) -> str:
        if attention.grid is None:
            return (
                "the sampler never called the model, so there is nothing to search; connect a positive conditioning "
                "that holds a prompt, and check the sampler."
            )
        why = attention.reasons[0].rstrip(".") if attention.reasons else "no step came to a phase that says 'heads'"
        return f"the model's self-attention stays dense, so there is nothing to search: {why}."

    def _check_searched(self) -> None:
        """Raise HeadSearchError if nothing was searched, and note what was not."""
        seek = self.seek
        counts = None if seek.search is None else seek.search.counts.sum((0, 1))
        if counts is None or not counts.any():
            raise HeadSearchError(self._nothing(seek))
        missed = [i for i in np.flatnonzero(counts == 0).tolist() if i not in self.request.dense_layers]
        if missed:
            self._note(f"layers {', '.join(map(str, missed))} were not searched and stay full.")
        self._check_finite(counts)
        if seek.unknown_branches and self.wanted.branches == "separate":
            self._note(BRANCHES)
        for reason in seek.reasons:
            self._note(f"part of the attention ran as the host has it while searching: {reason.rstrip('.')}.")

    def _check_finite(self, counts: np.ndarray) -> None:
        """Raise HeadSearchError if no error of a layer that was searched is a number, and note such layers."""
        errors = self.seek.search.errors[..., FULL + 1 :]
        finite = np.isfinite(errors).any((0, 1, 3, 4)) | (errors.shape[-1] == 0)
        broken = np.flatnonzero((counts > 0) & ~finite).tolist()
        if len(broken) == np.count_nonzero(counts):
            raise HeadSearchError(
                "the model's attention gives values that are no finite numbers, so no pattern can be chosen; check "
                "that the model makes a video without this node, or load it in another precision."
            )
        if broken:
            layers = ", ".join(map(str, broken))
            self._note(f"layers {layers} gave values that are no finite numbers and stay full.")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _made(self, passes: int, seconds: float, gathered: Gathered | None) -> dict[str, Any]:
        """Return what the table says of how it was found."""
        job, wanted = self.jobs[0], self.wanted
        made = {
            "rule": wanted.rule, "cost": self.costs.kind, "costs_from": self.costs.says(), "clips": len(self.jobs),
            "prompts": wanted.prompts, "seeds": sorted({job.seed for job in self.jobs}), "steps": job.steps,
            "sampler": job.sampler_name, "scheduler": job.scheduler, "cfg": job.cfg, "passes": passes,
            "seconds": round(seconds, 1),
        }  # fmt: skip
        return made if gathered is None else {**made, "evidence": evidence_facts(gathered)}


def _falling(sigmas: Sequence[float]) -> list[float]:
    """Return the steps' sigmas, each once: some schedulers repeat one."""
    found = sorted(set(sigmas), reverse=True)
    return found if found[-1] > 0 or len(found) == 1 else found[:-1]
