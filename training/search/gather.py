"""Evidence before the search: what every head looks at in a few steps of dense runs, per clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.nn.functional import scaled_dot_product_attention

from ...kernels.grid import Tiling
from ...kernels.headsearch.evidence import evidence
from ...kernels.headsearch.gathered import Gathered, evidence_steps
from ..model import WanTransformer3DModel
from .trajectory import Clip, Sampler, noise, run_step


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
    wanted = evidence_steps(sampler.steps)
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
