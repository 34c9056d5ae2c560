"""The passes of a search over its clips, step by step, resumable after every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...kernels.headsearch.search import HeadSearch
from ..model import WanTransformer3DModel
from ..stopping import StopFlag
from .state import Place, StateFile
from .trajectory import Clip, Sampler, noise, run_step

# A step of a small model is shorter than writing where it stands.
SAVE_SECONDS = 5.0


class StopError(Exception):
    """A stop was asked for, and where the search stands is kept; the message says how to go on."""


def run_passes(
    model: WanTransformer3DModel,
    search: HeadSearch,
    sampler: Sampler,
    batches: Sequence[Sequence[Clip]],
    *,
    passes: int = 1,
    state: StateFile | None = None,
    tick: Callable[[Place], object] = lambda place: None,
    stop: StopFlag | None = None,
) -> None:
    """Sample every batch in every pass with ``search`` in place of self-attention; ``tick`` is told each step done.

    The second and later passes follow the choices of the one before, and measure anew. With a ``state`` that was
    written before, what is done is not done again, and the result is the same. Where a ``stop`` is asked for, the step
    is finished, kept in ``state``, and StopError is raised.
    """
    place, arrays = (state.read() if state is not None else None) or (Place(), None)
    x = None
    if arrays is not None:
        kept = arrays.pop("x", None)
        x = None if kept is None else torch.from_numpy(kept)
        search.load(arrays)
    saved = time.monotonic()
    for number in range(place.number, passes):
        first = place.batch if number == place.number else 0
        for batch in range(first, len(batches)):
            clips = batches[batch]
            begin = place.step if (number, batch) == (place.number, place.batch) else 0
            if begin == 0 or x is None:
                begin, x = 0, noise(sampler, clips)
            for step in range(begin, sampler.steps):
                x = run_step(model, sampler, clips, x, step, search.attend, search.searches)
                tick(Place(number, batch, step))
                if state is None or step + 1 == sampler.steps:
                    continue
                stopping = stop is not None and stop.requested
                if stopping or time.monotonic() - saved > SAVE_SECONDS:
                    state.write(Place(number, batch, step + 1), _arrays(search, x))
                    saved = time.monotonic()
                if stopping:
                    raise StopError(_stopped(state))
            x = None
            if state is not None and batch + 1 < len(batches):
                state.write(Place(number, batch + 1, 0), _arrays(search, None))
                if stop is not None and stop.requested:
                    raise StopError(_stopped(state))
        if number + 1 < passes:
            search.next_pass()
            if state is not None:
                state.write(Place(number + 1, 0, 0), _arrays(search, None))
                if stop is not None and stop.requested:
                    raise StopError(_stopped(state))


def _stopped(state: StateFile) -> str:
    return f"stopped and saved in {state.path}; the same call goes on there"


def _arrays(search: HeadSearch, x: torch.Tensor | None) -> dict[str, np.ndarray]:
    return search.state() if x is None else {**search.state(), "x": x.float().cpu().numpy()}
