"""What the benchmark node does around the measurement: what is measured, the progress bar, and where times are kept."""

from __future__ import annotations

import logging
from typing import Any

from ..kernels.calibration import Calibration, CalibrationError, calibration_path, entry_key
from ..kernels.calibration_file import shown
from ..kernels.contestants import Size
from ..kernels.measure import Measurement
from ..kernels.outlook import PIXELS_PER_TOKEN
from .host import HEAD_DIM, default_dtype, host_device, stop_if_canceled
from .model_facts import ModelFacts
from .video_size import range_problem, token_grid, whole_problem

logger = logging.getLogger(__name__)

MAX_HEADS = 256
MIN_SECONDS, MAX_SECONDS = 0.5, 600.0


class Ticker:
    """Between two measurements: move the progress bar, and stop where the user canceled."""

    PARTS = 100

    def __init__(self, bar: Any) -> None:
        self.bar, self.done = bar, 0

    def __call__(self, share: float) -> None:
        """Show ``share``; raises the host's own exception where the user canceled."""
        stop_if_canceled()
        now = max(self.done, min(self.PARTS, round(share * self.PARTS)))
        self.bar.update(now - self.done)
        self.done = now


class Kept:
    """Counts how often times that this process measured were lost from the file: deleted, damaged, or never written.

    The host shows a node's earlier result while nothing changes. This number changes when that result is all that is
    left of a measurement, and not when another run adds to the file.
    """

    def __init__(self) -> None:
        self._there: dict[tuple, str] = {}
        self._unwritten: list[tuple[int, int] | None] = []
        self._lost = 0

    def wrote(self, entry: dict) -> None:
        """Remember that ``entry`` is in the file."""
        self._there[entry_key(entry)] = entry["measured"]

    def could_not_write(self) -> None:
        """Remember that times are not in the file as it is now."""
        self._unwritten = [_stamp()]

    def losses(self) -> int:
        """Return how often times were lost; what could not be written counts once the file is another one."""
        found = {entry_key(entry): entry["measured"] for entry in Calibration.load().entries} if self._there else {}
        gone = any(found.get(key, "") < measured for key, measured in self._there.items())
        if gone or (self._unwritten and self._unwritten != [_stamp()]):
            self._lost += 1
            self._there, self._unwritten = {}, []
        return self._lost


kept = Kept()


def _stamp() -> tuple[int, int] | None:
    """Return what tells the calibration file from a changed one; None without a file."""
    try:
        stat = calibration_path().stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def effort_problem(heads: Any = None, seconds: Any = None) -> str | None:
    """Return the sentence for heads or seconds that cannot be, None for those that can or are not known yet."""
    if heads is not None and (problem := whole_problem("heads", heads, MAX_HEADS)):
        return problem
    return None if seconds is None else range_problem("seconds", seconds, MIN_SECONDS, MAX_SECONDS)


def wanted_size(
    width: int, height: int, frames: int, heads: int, backend: str, seconds: float, facts: ModelFacts | None
) -> Size:
    """Return what is to be measured: the model's shape where there is one, else ``heads`` of dimension 128."""
    pixels = PIXELS_PER_TOKEN if facts is None else facts.pixels
    grid = token_grid(width, height, frames, pixels)
    if facts is not None:
        return Size(
            grid, facts.heads, facts.head_dim, facts.dtype, facts.device, backend, seconds=seconds, **facts.tiles
        )
    device = host_device()
    return Size(grid, heads, HEAD_DIM, default_dtype(device), device, backend, seconds=seconds)


def model_notes(model: Any, facts: ModelFacts | None) -> list[str]:
    """Return what a reader must know of the connected model."""
    if facts is None:
        return []
    notes = [facts.problem] if facts.problem else []
    if "optimized_attention_override" in (model.model_options.get("transformer_options") or {}):
        notes.append("another node replaces this model's attention; what is measured as dense is the host's own.")
    return notes


def keep(result: Measurement) -> str:
    """Put the times into the calibration file, unless they are of single calls; return the sentence that says where,
    or why not."""
    entry = result.entry()
    if entry is None:
        return "Nothing was kept: no time of FPSAttention's was measured."
    if result.single:
        return "Nothing was kept: times of one call each are shown here only; allow more seconds."
    calibration = Calibration.load()
    said = [calibration.problem] if calibration.problem else []
    try:
        calibration.put(entry)
        calibration.save()
    except CalibrationError as error:
        kept.could_not_write()
        sentence = str(error)
        logger.warning("FPSAttention: %s", sentence)
        return f"The times were not kept: {sentence}"
    kept.wrote(entry)
    count = len(calibration.entries)
    where = f"Kept in {shown(calibration_path())} ({count} measurement{'s' if count != 1 else ''})."
    return " ".join([where, *(f"Note: {sentence}" for sentence in said)])
