"""The study of head patterns on the small base: the search against the best uniform window of equal density, the
paper's rule over lambda and epsilon, and whether patterns depend on the content.

Searches sample from noise, as the paper's do; what they find is judged on held-out clips by the error of the model's
output against its dense output, relative L2, at the noise levels of the same sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.grid import choose_tiling
from ...kernels.head_table import HeadTable
from ...kernels.headsearch.candidates import DEFAULT, PAPER, read_candidates
from ...kernels.headsearch.evidence import evidence
from ...kernels.headsearch.gathered import Gathered, stripes
from ...kernels.headsearch.gathered import evidence_facts as facts
from ...kernels.headsearch.rule import Rule
from ...kernels.headsearch.search import OUTPUT, HeadSearch, Request, step_bands
from ...kernels.pattern_text import format_pattern
from ...kernels.patterns import Pattern, Window, pattern_pairs
from ...kernels.schedule import Phase, Schedule
from ..attention import attention_state
from ..flow import noisy, sample_generator
from ..model import WanTransformer3DModel
from ..search.passes import run_passes
from ..search.sensitivity import measure_weights
from ..search.trajectory import Clip, Sampler, run_step
from ..sparse import DENSE, SparseAttention, latent_grid
from ..step import model_inputs
from .answers import Answers
from .sizes import Size
from .work import Deadline, evenly

DENSITIES = (0.5, 0.3, 0.2, 0.1)
# A uniform window comes in steps of tiles: one of this part of the density or more may stand for it.
NEAR = 0.75
STEPS, SHIFT = 12, 3.0
SEEDS = (0, 1)
HELD_OUT = 8
CONTENTS = 6
EVIDENCE_SIGMAS = (0.93, 0.75, 0.45)
STRIPE_SHARE, STRIPES = 0.1, 4
LAMBDAS, EPSILONS = (0.0, 0.1, 0.5, 1.0), (0.5, 3.0, 5.0, 10.0)
# The paper's epsilons are of its models' scale: ours are in units of the smallest one's mean power, see `scale`.
OUR_LAMBDAS = (0.0, 0.01, 0.05, 0.2)
OUR_EPSILONS = (0.005, 0.02, 0.1, 0.3)
# Online selectors with what they are compared at; a gate of -1 is none.
WORDS = (
    "svg 0.5", "svg 0.25", "svg 0.15", "sta", "topk 0.5", "topk 0.25", "topk 0.15", "topk 0.08", "cdf 0.95 -1",
    "cdf 0.9 -1", "cdf 0.8 -1", "cdf 0.9",
)  # fmt: skip
BF16, FP8 = "0 bf16 - heads", "0 fp8 x1 heads"


class HeadStudy:
    """The study's model and data, with a cache of one JSON file per question."""

    def __init__(
        self,
        size: Size,
        model: WanTransformer3DModel,
        held_out: Sequence[dict[str, Any]],
        text: torch.Tensor,
        cache: Path,
        shared: dict[str, Any],
        stop: Deadline,
        say: Callable[[str], None],
    ) -> None:
        self.size, self.model, self.text, self.stop = size, model, text, stop
        self.held_out = evenly(held_out, HELD_OUT)
        self.contents = evenly(held_out, CONTENTS)
        self.ask = Answers(cache, shared, stop, say).ask
        self.shape = tuple(self.held_out[0]["latent"].shape)
        self.grid = latent_grid(self.shape)
        self.tiling = choose_tiling(self.grid, size.slots, size.tile)
        self.sampler = Sampler(self.shape, STEPS, SHIFT)
        self.layers, self.heads = len(model.blocks), model.config.num_attention_heads
        self._dense: list[torch.Tensor] | None = None
        self._seen: list[float] | None = None

    def output_error(self, attention: SparseAttention) -> float:
        """Return the relative L2 error of the model's output on the held-out clips, mean over the sampler's levels."""
        if self._dense is None:
            self._dense = self._outputs(DENSE)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(self._outputs(attention), self._dense)]
        return float(np.mean(errors))

    def online(self, word: str) -> dict[str, float]:
        """Return error and mean density of a selector that decides in every call, bf16."""
        densities: list[float] = []
        attention = SparseAttention(Schedule.parse(f"0 bf16 - {word}"), self.size.slots, self.size.tile)
        self._seen = densities
        try:
            error = self.output_error(attention)
        finally:
            self._seen = None
        return {"error": error, "density": float(np.mean(densities))}

    def of_table(self, table: HeadTable) -> SparseAttention:
        """Return the attention of a table."""
        return SparseAttention(table.schedule, self.size.slots, self.size.tile, table=table)

    @torch.no_grad()
    def _outputs(self, attention: SparseAttention) -> list[torch.Tensor]:
        state, found = attention_state(self.model), []
        latent = torch.stack([sample["latent"].float() for sample in self.held_out])
        texts = [sample["text"] for sample in self.held_out]
        for index, sigma in enumerate(self.sampler.sigmas[:-1]):
            noise = [torch.randn(self.shape, generator=sample_generator(4321, i, index)) for i in range(len(latent))]
            level = torch.full((len(latent),), sigma)
            x = noisy(latent, torch.stack(noise), level)
            with state.step(attention, sigma, self.shape):
                found.append(self.model(*model_inputs(x, level, texts), return_dict=False)[0])
                if self._seen is not None and state.online_density is not None:
                    self._seen.append(state.online_density)
        return found

    def evidence(self) -> Gathered:
        """Return what heads look at on held-out clips, by clip."""
        gathered = Gathered()
        for number, sample in enumerate(self.contents):
            for index, sigma in enumerate(EVIDENCE_SIGMAS):
                noise = torch.randn(self.shape, generator=sample_generator(99, number, index))
                level = torch.full((1,), sigma)
                x = noisy(sample["latent"].float()[None], noise[None], level)

                def attend(layer, _sigma, q, k, v, branches, name=f"clip {number}", sigma=sigma):
                    del branches
                    gathered.add(name, sigma, layer, evidence(q, k, v, self.tiling))
                    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

                at = Sampler(self.shape, 1, SHIFT, start=sigma)
                run_step(self.model, at, [Clip(sample["text"], 0)], x, 0, attend, lambda sigma, layer: True)
        return gathered

    def search(self, request: Request, passes: int) -> HeadSearch:
        """Return a finished search over the study's seeds, both in one batch."""
        search = HeadSearch(request, self.grid, self.layers, self.heads, slots=self.size.slots, tile=self.size.tile)
        clips = [Clip(self.text, seed) for seed in SEEDS]
        if request.error == OUTPUT:
            search.weights = measure_weights(self.model, search, self.sampler, clips[0])
        run_passes(self.model, search, self.sampler, [clips], passes=passes)
        return search

    def uniform(self, window: Window, text: str = BF16) -> SparseAttention:
        """Return the attention in which every head of every step has ``window``."""
        phase = Schedule.parse(text).phases[0]
        extents = (window.t, window.h, window.w)
        schedule = Schedule((Phase(0.0, phase.attention, phase.granularity, extents),))
        return SparseAttention(schedule, self.size.slots, self.size.tile)

    def windows(self, low: float, high: float) -> list[tuple[float, Window]]:
        """Return every window shape with a density in [low, high], with its exact density."""
        found = []
        sides = [range(1, n + 1) for n in self.tiling.pieces]
        for k in np.ndindex(*(len(side) for side in sides)):
            extents = [
                None if i + 1 == n else (i + 1) * tile for i, n, tile in zip(k, self.tiling.pieces, self.tiling.tile)
            ]
            window = Window(*extents)
            density = pattern_pairs(window, self.tiling) / self.grid.tokens**2
            if low <= density <= high + 1e-9:
                found.append((density, window))
        return found


def run_heads(study: HeadStudy, facts_of: dict[str, Any]) -> dict[str, Any]:
    """Return every result of the study; raises OutOfTimeError, what is done is kept."""
    gathered = study.evidence()
    found_stripes = stripes(gathered, study.tiling, STRIPE_SHARE, STRIPES)
    candidates = (*read_candidates(DEFAULT), *found_stripes)
    results: dict[str, Any] = {
        "conditions": facts_of,
        "evidence": facts(gathered),
        "stripes": [format_pattern(p) for p in found_stripes],
        "candidates": [format_pattern(p) for p in candidates],
    }
    results["uniform"] = _uniform(study)
    results["budgets"] = _budgets(study, candidates, results["uniform"])
    results["ablations"] = _ablations(study, candidates)
    results["online"] = [
        {"word": word, **study.ask("online", {"word": word}, lambda w=word: study.online(w))} for word in WORDS
    ]
    results["saved"] = saved_work(results["uniform"], results["budgets"])
    return results


def _uniform(study: HeadStudy) -> dict[str, list[dict[str, Any]]]:
    """Errors of every uniform window near each density, best first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for density in DENSITIES:
        rows = []
        for exact, window in study.windows(NEAR * density, density):
            words = format_pattern(window)
            error = study.ask("uniform", {"window": words}, lambda w=window: study.output_error(study.uniform(w)))
            rows.append({"window": words, "density": exact, "error": error})
        found[f"{density:g}"] = sorted(rows, key=lambda row: row["error"])
    return found


def _budgets(
    study: HeadStudy, candidates: Sequence[Pattern], uniform: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The search at the density of the best uniform window; without FP8 and, as a whole system, with it."""
    rows = []
    for density, windows in uniform.items():
        best = windows[0]
        for text, error in ((BF16, OUTPUT), (FP8, OUTPUT), (BF16, "normalized")):
            request = Request(
                Schedule.parse(text), step_bands(study.sampler.sigmas[:-1]), tuple(candidates), error=error,
                budget=best["density"],
            )  # fmt: skip

            def work(request=request) -> dict[str, Any]:
                table = study.search(request, 2).table("study base")
                return {"table": table.to_json(), "error": study.output_error(study.of_table(table))}

            asked = {
                "budget": best["density"],
                "attention": text,
                "error": error,
                "candidates": [format_pattern(p) for p in candidates],
            }
            answer = study.ask("budget", asked, work)
            table = HeadTable.from_json(answer["table"])
            window = best["error"]
            if text == FP8:
                parsed = next(w for d, w in study.windows(0, 1) if format_pattern(w) == best["window"])
                window = study.ask(
                    "uniform-fp8",
                    {"window": best["window"]},
                    lambda w=parsed: study.output_error(study.uniform(w, FP8)),
                )
            rows.append({
                "target": float(density), "attention": text.split()[1], "by": error, "window": best["window"],
                "density": table.made["mean_density"], "window_density": best["density"], "window_error": window,
                "error": answer["error"], "lambda": table.made["lambda"],
                "patterns": dict(table.counts().most_common()), "layers": _layer_densities(study, table),
            })  # fmt: skip
    return rows


def _layer_densities(study: HeadStudy, table: HeadTable) -> list[list[list[float]]]:
    """Densities per band, layer and head."""
    return [table.head_densities(study.tiling, band)[0].round(4).tolist() for band in range(len(table.bands))]


def _ablations(study: HeadStudy, candidates: Sequence[Pattern]) -> list[dict[str, Any]]:
    """The rules over lambda and over epsilon: the paper's on plain MSE with its four modes, ours on normalized errors.

    Plain MSE is in units of the squared output, which differ from model to model: its epsilons are multiples of a tenth
    of the mean power of this model's heads, which is what skipping a head loses on average.
    """
    power = study.ask("power", {}, lambda: mean_power(study))
    scale = 0.1 * power
    paper = [(lam, 1.0) for lam in LAMBDAS] + [(0.5, epsilon) for epsilon in EPSILONS]
    ours = [(lam, 0.05) for lam in OUR_LAMBDAS] + [(0.05, epsilon) for epsilon in OUR_EPSILONS]
    kinds = {
        "paper": ("mse", PAPER, [(lam * scale, eps * scale, lam, eps) for lam, eps in paper]),
        "ours": ("normalized", None, [(lam, eps, lam, eps) for lam, eps in ours]),
    }
    rows = []
    for kind, (error, names, rules) in kinds.items():
        patterns = tuple(candidates) if names is None else tuple(read_candidates(names))
        for lam, epsilon, shown_lam, shown_epsilon in dict.fromkeys(rules):
            request = Request(
                Schedule.parse(BF16), step_bands(study.sampler.sigmas[:-1]), patterns, Rule(lam, epsilon), error=error
            )

            def work(request=request) -> dict[str, Any]:
                table = study.search(request, 1).table("study base")
                counts = table.counts()
                return {
                    "density": table.made["mean_density"],
                    "error": study.output_error(study.of_table(table)),
                    "patterns": dict(counts.most_common()),
                }

            asked = {
                "lambda": lam,
                "epsilon": epsilon,
                "error": error,
                "candidates": [format_pattern(p) for p in patterns],
            }
            rows.append({
                "rule": kind, "lambda": shown_lam, "epsilon": shown_epsilon, "scale": scale if kind == "paper" else 1.0,
                **study.ask("rule", asked, work),
            })  # fmt: skip
    return rows


def mean_power(study: HeadStudy) -> float:
    """Return the mean squared output of a head along the search's trajectories."""
    request = Request(
        Schedule.parse(BF16), (0.0,), tuple(read_candidates(("skip", "first 1"))), Rule(0.0, 0.0), error="mse"
    )
    search = study.search(request, 1)
    skip = [format_pattern(p) for p in search.candidates].index("skip")
    return float(np.nanmean(search.errors[..., skip]))


def saved_work(uniform: dict[str, list[dict[str, Any]]], budgets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each uniform window that is best at its density how much less the search computes at equal error.

    The search's densities at other errors are read off the line through its points, in log(error).
    """
    points = sorted(
        (row["error"], row["density"]) for row in budgets if (row["attention"], row["by"]) == ("bf16", OUTPUT)
    )
    errors, densities = np.log([p[0] for p in points]), [p[1] for p in points]
    rows = []
    for windows in uniform.values():
        best = windows[0]
        at = np.log(best["error"])
        inside = errors[0] <= at <= errors[-1]
        needed = float(np.interp(at, errors, densities)) if inside else None
        # Beyond its sparsest point the search needs at most what that point does.
        most = densities[-1] if at > errors[-1] else None
        needs = needed if needed is not None else most
        rows.append({
            "window": best["window"], "window_density": best["density"], "error": best["error"], "density": needs,
            "at_most": needed is None, "saved": None if needs is None else 1 - needs / best["density"],
        })  # fmt: skip
    return rows
