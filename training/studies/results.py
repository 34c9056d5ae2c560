"""Reading the study's results: what is there of each comparison, as figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError
from .plan import SIGMAS, Arm, Comparison, Job, Quantization, Train
from .sizes import SIZES, Size
from .statistics import Figures, figures


@dataclass(frozen=True)
class Row:
    """A comparison that was run to its end."""

    comparison: Comparison
    losses: dict[str, float]
    per_sigma: dict[str, dict[str, float]]
    density: float

    @property
    def arm(self) -> Arm:
        """The arm."""
        return self.comparison.arm

    @property
    def figures(self) -> Figures:
        """Excesses and the share of the gap that is closed."""
        return figures(self.losses)


@dataclass(frozen=True)
class Results:
    """The results file of one size."""

    size: Size
    conditions: dict[str, Any]
    results: dict[str, Any]

    def of(self, job: Job) -> dict[str, Any] | None:
        """Return the result of a job, None if it was not run."""
        return self.results.get(job.key)

    def row(self, comparison: Comparison) -> Row | None:
        """Return a comparison's losses, None while one is missing."""
        found = {name: self.of(measure) for name, measure in comparison.parts.items()}
        if any(value is None for value in found.values()):
            return None
        return Row(
            comparison,
            {name: value["loss"] for name, value in found.items()},
            {name: value["per_sigma"] for name, value in found.items()},
            found["C"]["density"],
        )

    def rows(self, comparisons: Sequence[Comparison]) -> list[Row]:
        """Return the comparisons that were run to their end."""
        return [row for one in comparisons if (row := self.row(one)) is not None]

    def curve(self, arm: Arm) -> list[float] | None:
        """Return an arm's training losses."""
        found = self.of(Train(arm))
        return None if found is None else found.get("losses")

    def unpaired(self, rows: Sequence[Row]) -> list[str]:
        """Return the arms that did not draw the noise levels of their control; there should be none."""
        drawn = [(row.arm.key, self.of(Train(row.arm)), self.of(Train(row.arm.control))) for row in rows]
        return [key for key, arm, control in drawn if arm and control and arm.get("sigmas") != control.get("sigmas")]

    def quantization(self) -> dict[float, dict[str, Any]]:
        """Return the quantization results by noise level, from noise to picture."""
        sigmas = (0.99, *SIGMAS[1:], 0.04)
        return {sigma: found for sigma in sigmas if (found := self.of(Quantization(sigma))) is not None}


def load_results(path: Path) -> Results:
    """Return the results of a file. Raises ConfigError, one sentence."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no results yet; run `python -m training.studies run` first") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON file ({error}); run the study again") from None
    if not isinstance(content, dict) or not {"conditions", "results"} <= content.keys():
        raise ConfigError(f"{path} is no results file of the study; it has no 'conditions' or no 'results'")
    size = SIZES.get(content["conditions"].get("size"))
    if size is None:
        raise ConfigError(f"{path}: unknown size {content['conditions'].get('size')!r}; known: {', '.join(SIZES)}")
    return Results(size, content["conditions"], content["results"])
