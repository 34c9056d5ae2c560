"""A run's records as TensorBoard curves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from .rates import bucket_name, per_phase, per_sigma, rates

_log = logging.getLogger(__name__)

# Names of TensorBoard's curves for what a record has under its own name.
CURVES = {
    "loss": "loss/total",
    "flow_loss": "loss/flow_matching",
    "validation": "loss/held_out",
    "norm": "gradient/total",
    "lr": "optimizer/learning_rate",
    "skipped": "optimizer/skipped_steps",
    "density": "attention/density",
    "seconds": "speed/seconds_per_step",
}
RATES = {
    "tokens_per_second": "speed/tokens_per_second",
    "data_wait": "speed/data_wait_share",
    "mfu": "speed/mfu",
}


def scalars(record: dict[str, Any], peak: float | None = None) -> dict[str, float]:
    """Return every curve's value of a record by its TensorBoard name; numbers without a name of ours keep their own."""
    named = {"step", "data_seconds", "tokens", "flops", "memory", *CURVES}
    found = {CURVES[key]: record[key] for key in CURVES if record.get(key) is not None}
    found |= {RATES[key]: value for key, value in rates(record, peak).items()}
    found |= {f"loss/phase_{phase + 1}": loss for phase, loss in per_phase(record).items()}
    found |= {f"loss/sigma_{bucket_name(i)}": loss for i, loss in per_sigma(record).items()}
    found |= {f"gradient/block_{i:02d}": norm for i, norm in enumerate(record.get("block_norms") or [])}
    if record.get("memory") is not None:
        found["memory/peak_gib"] = record["memory"] / 2**30
    others = {key: value for key, value in record.items() if key not in named and not isinstance(value, bool)}
    return found | {key: value for key, value in others.items() if isinstance(value, (int, float))}


class Board:
    """The event file of a run; without the package, or on a full disk, it takes everything and writes nothing."""

    def __init__(self, folder: Path, *, from_step: int = 0, peak: float | None = None) -> None:
        self.peak = peak
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            _log.warning("no TensorBoard log: it is not installed (pip install tensorboard)")
            self._writer = None
        else:
            # What a killed run wrote beyond the step that it goes on from is hidden.
            self._writer = SummaryWriter(folder, purge_step=from_step if from_step else None)

    def add(self, record: dict[str, Any]) -> None:
        """Add a record's values."""
        self._write(lambda: [self._scalar(k, v, record["step"]) for k, v in scalars(record, self.peak).items()])

    def add_picture(self, name: str, picture: torch.Tensor, step: int) -> None:
        """Add a picture (H, W, 3) uint8."""
        self._write(lambda: self._writer.add_image(name, picture.numpy(), step, dataformats="HWC"))

    def add_text(self, name: str, text: str) -> None:
        """Add a text."""
        self._write(lambda: self._writer.add_text(name, text))

    def close(self) -> None:
        """Write what is left and close the file."""
        self._write(lambda: self._writer.close())

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def _write(self, action) -> None:
        if self._writer is None:
            return
        try:
            action()
        except OSError as error:
            _log.warning("the TensorBoard log is not written any more: %s", error)
            self._writer = None
