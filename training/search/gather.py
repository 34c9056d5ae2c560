"""Evidence before the search: what every head looks at in a few steps of dense runs, per clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.grid import Tiling
from ...kernels.headsearch.classify import stripe_candidates
from ...kernels.headsearch.evidence import evidence
from ...kernels.headsearch.gathered import Gathered
from ...kernels.patterns import Stripe
from ..model import WanTransformer3DModel
from .trajectory import Clip, Sampler, noise, run_step

# Early, middle and late say how heads change along the trajectory.
STEPS = 3


def gather(
    model: WanTransformer3DModel,
    sampler: Sampler,
    clips: Sequence[Clip],
    tiling: Tiling,
    tick: Callable[[], object] = lambda: None,
) -> Gathered:
    """Return the evidence of a dense run of each clip, named by its number; ``tick`` is called after every step.

    Only the prompt's branch is looked at, under guidance too.
    """
    last = sampler.steps - 1
    wanted = {round(last * i / (STEPS - 1)) for i in range(STEPS)}
    gathered = Gathered()
    for number, clip in enumerate(clips):
        x = noise(sampler, [clip])
        for step in range(sampler.steps):

            def attend(layer, sigma, q, k, v, branches, name=str(number)):
                del branches
                gathered.add(name, sigma, layer, evidence(q[:1], k[:1], v[:1], tiling))
                return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

            x = run_step(model, sampler, [clip], x, step, attend, lambda sigma, layer, step=step: step in wanted)
            tick()
    return gathered


def stripes(gathered: Gathered, tiling: Tiling, share: float, most: int) -> list[Stripe]:
    """Return at most ``most`` stripes of ``share`` of the tiles that heads look at in any of the steps."""
    return stripe_candidates([gathered.means[key] for key in sorted(gathered.means)], tiling, share, most)


def facts(gathered: Gathered) -> dict[str, Any]:
    """Return what a table says about the evidence that it was made with."""
    words, counts = np.unique([gathered.classes(step) for step in gathered.steps], return_counts=True)
    clips = len({prompt for prompt, _, _ in gathered.prompts})
    said: dict[str, Any] = {
        "sigmas": [round(step, 6) for step in gathered.steps],
        "clips": clips,
        "families": {str(word): int(count) for word, count in zip(words, counts)},
    }
    if clips > 1 and next(iter(gathered.means.values())).heads * len(gathered.layers) > 1:
        found = gathered.dependence()
        said["prompts"] = {
            "variance": {part: round(value, 4) for part, value in found.variance.items()},
            "same_family": round(found.same, 4),
            "same_by_chance": round(found.same_by_chance, 4),
            "kappa": None if np.isnan(found.kappa) else round(found.kappa, 4),
        }
    return said
