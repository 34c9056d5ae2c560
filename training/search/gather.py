"""Evidence before the search: what every head looks at in a few steps of dense runs, per clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.grid import Tiling
from ...kernels.headsearch.classify import (
    PromptDependence,
    classify,
    concentrations,
    families,
    prompt_dependence,
    stripe_candidates,
)
from ...kernels.headsearch.evidence import MEASURED, Evidence, evidence
from ...kernels.patterns import Stripe
from ..model import WanTransformer3DModel
from .trajectory import Clip, Sampler, noise, run_step

# Early, middle and late say how heads change along the trajectory.
STEPS = 3


@dataclass(frozen=True)
class Gathered:
    """Evidence by (step, layer), with one sample per clip; ``steps`` are the steps that were looked at."""

    steps: tuple[int, ...]
    sigmas: tuple[float, ...]
    found: dict[tuple[int, int], Evidence]

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return 1 + max(layer for _, layer in self.found)

    @property
    def clips(self) -> int:
        """Clips that were looked at."""
        return next(iter(self.found.values())).samples

    def families(self) -> np.ndarray:
        """Return the family of every head by the mean over clips, ``(steps, layers, heads)`` words."""
        return np.array([[classify(self.found[s, layer]) for layer in range(self.layers)] for s in self.steps])

    def stripes(self, tiling: Tiling, share: float, most: int) -> list[Stripe]:
        """Return at most ``most`` stripes of ``share`` of the tiles that heads look at."""
        return stripe_candidates(list(self.found.values()), tiling, share, most)

    def prompts(self) -> PromptDependence | None:
        """Return whether patterns depend on the prompt; None with a single clip."""
        if self.clips < 2:
            return None
        features, words = [], []
        for clip in range(self.clips):
            one = [[self.found[s, layer].sample(clip) for layer in range(self.layers)] for s in self.steps]
            found = np.array([[concentrations(e)[0] for e in row] for row in one])
            features.append(found)
            words.append([[families(f, e.share[0]) for f, e in zip(fs, es)] for fs, es in zip(found, one)])
        return prompt_dependence(np.array(features), np.array(words))

    def facts(self) -> dict[str, Any]:
        """Return what a table says about the evidence it was made with."""
        words, counts = np.unique(self.families(), return_counts=True)
        said: dict[str, Any] = {
            "steps": list(self.steps),
            "clips": self.clips,
            "families": {str(word): int(count) for word, count in zip(words, counts)},
        }
        prompts = self.prompts()
        if prompts is not None:
            said["prompts"] = {
                "variance": {part: round(value, 4) for part, value in prompts.variance.items()},
                "same_family": round(prompts.same, 4),
                "same_by_chance": round(prompts.same_by_chance, 4),
                "kappa": None if np.isnan(prompts.kappa) else round(prompts.kappa, 4),
            }
        return said


def gather(
    model: WanTransformer3DModel,
    sampler: Sampler,
    batches: Sequence[Sequence[Clip]],
    tiling: Tiling,
    tick: Callable[[], object] = lambda: None,
) -> Gathered:
    """Return the evidence of dense runs of the clips; ``tick`` is called after every step.

    Only the prompt's branch is looked at, under guidance too.
    """
    last = sampler.steps - 1
    steps = tuple(sorted({round(last * i / (STEPS - 1)) for i in range(STEPS)}))
    parts: dict[tuple[int, int], list[Evidence]] = {}
    for clips in batches:
        x = noise(sampler, clips)
        for step in range(sampler.steps):

            def attend(layer, sigma, q, k, v, branches, step=step):
                rows = torch.tensor([i for i, branch in enumerate(branches) if branch == 0], device=q.device)
                parts.setdefault((step, layer), []).append(evidence(*(x[rows] for x in (q, k, v)), tiling))
                return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

            x = run_step(model, sampler, clips, x, step, attend, lambda sigma, layer, step=step: step in steps)
            tick()
    found = {place: _joined(each) for place, each in parts.items()}
    return Gathered(steps, tuple(sampler.sigmas[step] for step in steps), found)


def _joined(parts: Sequence[Evidence]) -> Evidence:
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in MEASURED})
