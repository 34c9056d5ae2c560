"""What a layer's attention error does to the model's output, measured: the same error means more in some layers.

One layer at a time runs a sparse candidate while all others are full; the model's relative squared output error over
the layer's normalized error is its weight. Measured at a few steps and read off between them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...kernels.headsearch.search import HeadSearch
from ..model import WanTransformer3DModel
from .trajectory import Clip, Sampler, noise, run_step

STEPS = 4
# A candidate near this density is sparse enough to tell and dense enough to stay near the full output.
PROBE_DENSITY = 0.3


def measure_weights(
    model: WanTransformer3DModel,
    search: HeadSearch,
    sampler: Sampler,
    clip: Clip,
    tick: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Return weights (bands, layers) along a dense run of ``clip``; ``tick`` is called after every step.

    Bands that no step of the run reaches take the nearest step's; a layer that changes nothing weighs nothing.
    """
    searched = [step for step in range(sampler.steps) if search.searches(sampler.sigmas[step], -1)]
    wanted = sorted({searched[round(i * (len(searched) - 1) / max(1, STEPS - 1))] for i in range(STEPS)})
    index = int(np.argmin(np.abs(search.densities - PROBE_DENSITY)))
    found = np.zeros((len(wanted), search.layers))
    x = noise(sampler, [clip])
    for step in range(sampler.steps):
        dense = run_step(model, sampler, [clip], x, step, _never, lambda sigma, layer: False)
        if step in wanted:
            # x moves by velocity times the step: the ratio of changes is that of outputs.
            size = float((dense - x).double().square().sum())
            for layer in range(search.layers):
                errors: list[float] = []

                def attend(_layer, sigma, q, k, v, branches, errors=errors):
                    del branches
                    out, error = search.probe(index, sigma, q, k, v)
                    errors.append(error)
                    return out

                other = run_step(model, sampler, [clip], x, step, attend, lambda sigma, at, layer=layer: at == layer)
                change = float((other - dense).double().square().sum())
                found[wanted.index(step), layer] = change / size / errors[0] if errors[0] > 0 and size > 0 else 0.0
        x = dense
        tick()
    at = [sampler.sigmas[step] for step in wanted][::-1]
    middles = _middles(search.request.bands)
    return np.stack([np.interp(middles, at, found[::-1, layer]) for layer in range(search.layers)], 1)


def _middles(bands: tuple[float, ...]) -> np.ndarray:
    starts = (1.0, *bands[:-1])
    return np.array([(start + until) / 2 for start, until in zip(starts, bands)])


def _never(*_: object) -> None:
    raise RuntimeError("no layer was to be replaced in this step")
