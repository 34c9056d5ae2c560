"""What a run writes down: its facts, one JSON line per step, TensorBoard events if wanted, a plot of the losses.

A step's record is a dict. Only ``step`` must be there; the trainer writes, over all processes: ``loss``, ``norm`` and
``losses`` (per sample; None in a step that was skipped), ``lr``, ``samples``, ``sigma`` and ``phase`` (per sample),
``seconds``, ``data_seconds`` (of them, waiting for data), ``tokens``, ``flops`` (of the model, without recomputation),
``density`` (mean over the samples), ``memory`` (peak bytes of the main process), ``skipped`` (steps until now), and now
and then ``block_norms`` and ``validation``. With a weighting ``loss`` and ``losses`` are without it, and
``weighted_loss`` is what is trained on. ``routes`` is, now and then, which LoRA a timestep-aware LoRA's router chooses
at evenly spaced noise levels from 0 to 1.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from .watch.about import write_about
from .watch.rates import rates
from .watch.tensorboard import Board

_log = logging.getLogger(__name__)


class Journal:
    """The log of a run; ``folder`` None keeps it in memory only.

    ``about`` holds the run's facts (``watch.about.about_run``); ``board`` takes TensorBoard's pictures, None without.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        from_step: int = 0,
        tensorboard: bool = False,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.board: Board | None = None
        self._file = None
        self._path = None if folder is None else folder / "loss.jsonl"
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed has logged steps that it will now repeat: the log continues where the weights do.
        if from_step:
            self.records = [record for record in read_records(self._path) if record["step"] < from_step]
        self._rewrite()
        if about is not None:
            write_about(folder, about)
        if tensorboard:
            self.board = Board(folder / "tensorboard", from_step=from_step, peak=(about or {}).get("peak_flops"))

    def add(self, record: dict[str, Any]) -> None:
        """Append a record; its numbers, and those that follow from it, become TensorBoard curves."""
        self.records.append(record)
        if self._file is not None:
            with self._writing():
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        if self.board is not None:
            self.board.add(record)

    def complete(self, **values: Any) -> None:
        """Add values to the last record, in the log too; nothing happens in a run that took no step."""
        if not self.records:
            return
        self.records[-1].update(values)
        if self._file is not None:
            with self._writing():
                self._rewrite()
        if self.board is not None:
            self.board.add({"step": self.records[-1]["step"], **values})

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self.board is not None:
            self.board.close()

    def _rewrite(self) -> None:
        """Write the whole log anew, in a file that replaces the old one when it is complete."""
        if self._file is not None:
            self._file.close()
        partial = self._path.with_name(f"{self._path.name}.tmp")
        try:
            partial.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)
        self._file = self._path.open("a", encoding="utf-8")

    @contextlib.contextmanager
    def _writing(self):
        """Run the body; a disk that cannot be written ends the log, not the run."""
        try:
            yield
        except OSError as error:
            _log.warning("the loss log is not written any more: %s", error)
            self._file = None


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL log, of a running run too; torn lines are left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def status(record: dict[str, Any]) -> str:
    """Return the few words behind a progress bar: loss, held-out loss, rate, tokens/s, share of waiting for data."""
    loss = record.get("loss")
    parts = ["loss skipped" if loss is None else f"loss {loss:.4f}"]
    if record.get("validation") is not None:
        parts.append(f"held-out {record['validation']:.4f}")
    if record.get("lr") is not None:
        parts.append(f"lr {record['lr']:.1e}")
    found = rates(record)
    if "tokens_per_second" in found:
        parts.append(f"{_short(found['tokens_per_second'])} tokens/s")
    if "data_wait" in found:
        parts.append(f"data {found['data_wait']:.1%}")
    return ", ".join(parts)


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def plot_losses(curves: dict[str, list[dict[str, Any]]], path: Path, *, window: int = 20) -> bool:
    """Return True if the loss curves {label: records} were drawn to a PNG, False (with a note) without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        _log.warning("no loss plot: matplotlib is not installed (pip install matplotlib)")
        return False
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (label, records) in enumerate(curves.items()):
        color = f"C{number}"
        loss = [(r["step"] + 1, r["loss"]) for r in records if r.get("loss") is not None]
        if loss:
            steps, values = zip(*loss, strict=True)
            axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
            mean = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
            axes.plot(steps, mean, color=color, label=f"{label}: training, mean of {window} steps")
        held_out = [(r["step"] + 1, r["validation"]) for r in records if r.get("validation") is not None]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color=color, marker="o", linestyle="--", label=f"{label}: held out")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("flow-matching loss")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True
