"""Progress of a profile: one bar over all of its steps, with previews; what comes next, how long, and cancelling."""

from __future__ import annotations

import logging
import time
from typing import Any

from ._api import progress

logger = logging.getLogger(__name__)

# The first step also loads and compiles; the time per step is told after these many more.
_WARM = 2


class Meter:
    """Counts steps of the model; ``planned`` are those of the whole profile in dense steps of time."""

    def __init__(self, model: Any, total: int, node_id: str | None):
        self.total, self.done = total, 0
        self.planned = float(total)
        # Of a dense step; None where the dense run is too short to tell.
        self.seconds: float | None = None
        self._warm = _WARM
        self._bar = progress(total, node_id)
        self._previewer = _previewer(model)
        # Seconds of the steps that were spent on something else.
        self._other = 0.0
        self._started: float | None = None
        self._first: float | None = None

    def expect(self, total: int, dense: int, planned: float, sentence: str) -> None:
        """Set the number of steps once it is known, of which the first ``dense`` are dense, and say what they are
        for."""
        self.total, self.planned = total, planned
        self._warm = min(_WARM, dense - 1)
        logger.info("FPSAttention Profile: %s", sentence)

    def say(self, what: str) -> None:
        """Log what runs next."""
        logger.info("FPSAttention Profile: %s (%d of %d steps done)", what, self.done, self.total)

    def check(self) -> None:
        """Raise the host's own exception where the user cancelled."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()

    def spend(self, seconds: float) -> None:
        """Seconds of the present step that went into something else, such as probes."""
        self._other += seconds

    def step(self, denoised: Any) -> None:
        """One step of the model is done."""
        now = time.perf_counter()
        self.done += 1
        if self.done == 1:
            self._first = now - self._other
        elif self.done == 1 + self._warm:
            self.seconds = (now - self._other - self._first) / self._warm
            left = self.seconds * max(self.planned - self.done, 0)
            logger.info("FPSAttention Profile: %.2g s a step, about %s to go", self.seconds, spoken(left))
        preview = None
        if self._previewer is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised)
        absolute = getattr(self._bar, "update_absolute", None)
        if absolute is not None:
            absolute(min(self.done, self.total - 1), self.total, preview)

    def finish(self) -> None:
        """Fill the bar."""
        absolute = getattr(self._bar, "update_absolute", None)
        if absolute is not None:
            absolute(self.total, self.total)


def spoken(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _previewer(model: Any) -> Any:
    try:
        from latent_preview import get_previewer

        return get_previewer(model.load_device, model.model.latent_format)
    except (ImportError, AttributeError):
        return None
