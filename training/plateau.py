"""An adaptive learning rate: cut when the held-out loss stops falling."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import OptimSection

_log = logging.getLogger(__name__)

# A loss counts as better when it is lower by this share of the best one: less is noise of a held-out measurement.
BETTER = 1e-4


class Plateau:
    """The share ``factor`` of the learning rate, from 1 down to ``optim.final``.

    After ``plateau_patience`` measurements in a row without a better loss it is multiplied by ``plateau_factor``,
    and the count starts again. A loss that is not finite is not better. The result depends on the losses only.
    """

    def __init__(self, section: OptimSection) -> None:
        self.cut, self.patience, self.least = section.plateau_factor, section.plateau_patience, section.final
        self.factor = 1.0
        self.best: float | None = None
        self.waited = 0

    def measured(self, loss: float) -> None:
        """Take note of a validation's loss; ``factor`` is right for the next step afterwards."""
        if math.isfinite(loss) and (self.best is None or loss < self.best - BETTER * abs(self.best)):
            self.best, self.waited = float(loss), 0
            return
        self.waited += 1
        if self.waited < self.patience:
            return
        self.waited = 0
        factor = max(self.least, self.factor * self.cut)
        if factor < self.factor:
            best = "no finite loss so far" if self.best is None else f"best loss {self.best:.5f}"
            _log.info("%d validations without a better loss (%s): rate x %.4g from now on", self.patience, best, factor)
            self.factor = factor

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain JSON values."""
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that ``state_dict`` gave."""
        self.factor, self.waited = float(state["factor"]), int(state["waited"])
        self.best = None if state["best"] is None else float(state["best"])
