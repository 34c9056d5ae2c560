"""Progress of a node that samples by itself: one bar with previews, what comes next and how long, and cancelling."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

from ._api import progress

logger = logging.getLogger(__name__)

# The first step also loads and compiles; the time per step is told after these many more.
_WARM = 2


class Meter:
    """Counts steps of the model, and tells from the time of the first ones how long the rest takes."""

    def __init__(
        self,
        model: Any,
        total: int,
        node_id: str | None,
        name: str = "FPSAttention Profile",
        probe: str = "row probes",
    ):
        self.name, self.probe = name, probe
        self.total, self.done, self.dense = total, 0, total
        # Of everything: steps in dense steps of time, and row probes.
        self.planned, self.probes = float(total), 0
        # Of a dense step; None where the dense run is too short to tell.
        self.seconds: float | None = None
        self._warm = _WARM
        self._bar = progress(total, node_id)
        self._previewer = _previewer(model)
        # Seconds of each row probe so far: they are spent within the dense run's steps.
        self._probed: list[float] = []
        self._first: float | None = None
        # When the last dense step was over, and the last step.
        self._dense_over: float | None = None
        self._last: float | None = None

    def expect(self, total: int, dense: int, planned: float, sentence: str, probes: int = 0) -> None:
        """Set the number of steps once it is known, of which the first ``dense`` are dense, that of row probes within
        these, and say what they are for; ``planned`` are the steps in dense steps of time."""
        self.total, self.dense, self.planned, self.probes = total, dense, planned, probes
        self._warm = min(_WARM, dense - 1)
        logger.info("%s: %s", self.name, sentence)

    def say(self, what: str) -> None:
        """Log what runs next, and how long all that is left takes as measured since the dense run."""
        left = ""
        if self.done > self.dense:
            each = (self._last - self._dense_over) / (self.done - self.dense)
            left = f", up to {spoken(each * (self.total - self.done))} to go"
        logger.info("%s: %s (%d of %d steps done%s)", self.name, what, self.done, self.total, left)

    def check(self) -> None:
        """Raise the host's own exception where the user cancelled."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()

    def spend(self, seconds: float) -> None:
        """A row probe took ``seconds`` of the present step."""
        self._probed.append(seconds)

    def step(self, denoised: Any) -> None:
        """One step of the model is done."""
        self._last = time.perf_counter()
        self.done += 1
        if self.done == self.dense:
            self._dense_over = self._last
        without = self._last - sum(self._probed)
        if self.done == 1:
            self._first = without
        elif self.done == 1 + self._warm:
            self.seconds = (without - self._first) / self._warm
            self._tell()
        preview = None
        if self._previewer is not None:
            preview = self._previewer.decode_latent_to_preview_image("JPEG", denoised)
        absolute = getattr(self._bar, "update_absolute", None)
        if absolute is not None:
            absolute(min(self.done, self.total - 1), self.total, preview)

    def _tell(self) -> None:
        """Log the time of a step and of its probes, and of all that is left."""
        probe = statistics.median(self._probed) if self._probed else 0.0
        left = self.seconds * max(self.planned - self.done, 0) + probe * max(self.probes - len(self._probed), 0)
        probes = f" and {probe * len(self._probed) / self.done:.2g} s for its {self.probe}" if self.probes else ""
        logger.info("%s: %.2g s a step%s, about %s to go", self.name, self.seconds, probes, spoken(left))

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
