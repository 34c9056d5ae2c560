"""What a run writes down: one JSON line per step, a plot of the losses, and TensorBoard events if wanted."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class Journal:
    """The loss log of a run; ``folder`` None keeps it in memory only."""

    def __init__(self, folder: Path | None, *, from_step: int = 0, tensorboard: bool = False) -> None:
        self.records: list[dict[str, Any]] = []
        self._file = None
        self._board = None
        self._path = None if folder is None else folder / "loss.jsonl"
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        # A run that was killed has logged steps that it will now repeat: the log continues where the weights do.
        if from_step:
            self.records = [record for record in read_records(self._path) if record["step"] < from_step]
        self._rewrite()
        if tensorboard:
            self._board = _summary_writer(folder / "tensorboard")

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, which has at least ``step``; every number in it becomes a TensorBoard curve."""
        self.records.append(record)
        if self._file is not None:
            with self._writing():
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        self._draw(record["step"], record)

    def complete(self, **values: Any) -> None:
        """Add values to the last record, in the log too; nothing happens in a run that took no step."""
        if not self.records:
            return
        self.records[-1].update(values)
        if self._file is not None:
            with self._writing():
                self._rewrite()
        self._draw(self.records[-1]["step"], values)

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

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

    def _draw(self, step: int, values: dict[str, Any]) -> None:
        if self._board is not None:
            for key, value in values.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(key, value, step)

    @contextlib.contextmanager
    def _writing(self):
        """Run the body; a disk that cannot be written ends the log, not the run."""
        try:
            yield
        except OSError as error:
            _log.warning("the loss log is not written any more: %s", error)
            self._file = None


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSONL log; a torn last line is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records


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


def _summary_writer(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning("no TensorBoard log: it is not installed (pip install tensorboard)")
        return None
    return SummaryWriter(folder)
