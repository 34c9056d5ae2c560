"""Which LoRA of a timestep-aware LoRA ran at which sigma, kept for the report: one entry per sampler call."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .record import MAX_RUNS, executing_node

logger = logging.getLogger(__name__)

# On the MODEL: an attachment that all clones share.
KEY = "fpsattention_timestep_lora"


@dataclass
class LoraRun:
    """One sampler call: per sigma the LoRAs that ran, one for each of ``names``; None where none did."""

    prompt_id: str | None
    node_id: str | None
    steps: dict[float, tuple[int | None, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report and say it in the log, once per run."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            logger.warning("Timestep-aware LoRA: %s", sentence)


@dataclass
class LoraRecord:
    """The last runs of one patched model; ``names`` are its timestep-aware LoRAs, in the order of their nodes."""

    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    runs: deque[LoraRun] = field(default_factory=lambda: deque(maxlen=MAX_RUNS))
    _open: LoraRun | None = None

    def begin(self) -> LoraRun:
        """Open a new run, which says once what speaks against its LoRAs."""
        prompt_id, node_id, _ = executing_node()
        self._open = LoraRun(prompt_id, node_id)
        self.runs.append(self._open)
        for note in self.notes:
            self._open.note(note)
        return self._open

    def current(self) -> LoraRun:
        """Return the open run; opens one for a caller that samples without announcing it."""
        return self._open or self.begin()

    def end(self) -> None:
        """Close the open run."""
        self._open = None

    def lines(self, node_ids: set[str] | None) -> list[str]:
        """Return in words what ran in the latest run of the nodes ``node_ids``, None for all; a LoRA that acted over
        several steps is one line."""
        found = [run for run in self.runs if node_ids is None or run.node_id in node_ids]
        latest = {run.node_id: run.prompt_id for run in found}
        lines = []
        for run in found:
            if run.prompt_id == latest[run.node_id]:
                lines += [*_run_lines(self.names, run), *(f"note: {note}" for note in run.notes)]
        return lines


def _run_lines(names: tuple[str, ...], run: LoraRun) -> list[str]:
    lines = []
    for place, name in enumerate(names):
        parts: list[list[Any]] = []
        for sigma, chosen in sorted(run.steps.items(), reverse=True):
            index = chosen[place]
            if parts and parts[-1][0] == index:
                parts[-1][2], parts[-1][3] = sigma, parts[-1][3] + 1
            else:
                parts.append([index, sigma, sigma, 1])
        said = [
            f"{'none' if index is None else f'LoRA {index}'} at sigma {first:.4f}"
            + (f" to {last:.4f} ({count} steps)" if count > 1 else "")
            for index, first, last, count in parts
        ]
        lines.append(f"timestep-aware LoRA {name}: {', '.join(said) if said else 'no model call was recorded'}")
    return lines


def report_lines(model: Any, node_ids: set[str] | None) -> list[str]:
    """Return what the report says about the timestep-aware LoRAs of ``model``, nothing if it has none."""
    acting = model.get_attachment(KEY)
    record = getattr(acting, "record", None)
    return record.lines(node_ids) if isinstance(record, LoraRecord) else []
