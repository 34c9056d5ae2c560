"""What a patched model runs, where that came from, and what belongs to it: schedule, tile, backend, file header."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..kernels.checkpoint import Header, HeaderError, read_header
from ..kernels.grid import TokenGrid
from ..kernels.outlook import sampler_sigmas
from ..kernels.plan import attention_work
from ..kernels.presets import preset
from ..kernels.schedule import Schedule
from .dense_blocks import format_blocks
from .record import Recorder
from .sentence import one_line

# One key for the wrapper, the callbacks, the attachment and the per-call state in transformer_options.
KEY = "fpsattention"

DEFAULT_PRESET = "mild"
FROM_FILE = "the model file"

# A 832x480 clip of 81 frames over 20 steps at Wan's usual shift: only to compare two schedules.
_NOMINAL_GRID = TokenGrid(21, 30, 52)
_NOMINAL_SHIFT = 8.0
_NOMINAL_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """The choices behind one patch. ``source`` says in words where the schedule came from; ``dense_blocks`` stay dense
    whatever it says."""

    schedule: Schedule
    source: str
    backend: str = "auto"
    header: Header | None = None
    notes: tuple[str, ...] = ()
    dense_blocks: frozenset[int] = frozenset()

    @property
    def choices(self) -> str:
        """Return what was chosen beside the schedule, in words."""
        dense = f", blocks {format_blocks(self.dense_blocks)} always dense" if self.dense_blocks else ""
        return f"backend {self.backend}{dense}"

    @property
    def tiles(self) -> dict[str, Any]:
        """The tile arguments of ``plans_for``: the file's, or the defaults."""
        if self.header is None:
            return {}
        return {"slots": self.header.slots, "tile": self.header.tile, "smooth_k": self.header.smooth_k}


@dataclass(frozen=True)
class Patched:
    """Attached to a patched model and shared by its clones."""

    settings: Settings
    recorder: Recorder = field(default_factory=Recorder)


def choose_settings(header: Header | None, schedule: Schedule | None, backend: str) -> Settings:
    """Return the settings for a model with ``header`` when the user gave ``schedule`` (or None).

    The file's schedule is the default, the mild preset where there is none; an override is named, and one that is
    stronger than the weights were trained for is said to be.
    """
    if schedule is None:
        if header is not None:
            return Settings(header.schedule, FROM_FILE, backend, header)
        return Settings(preset(DEFAULT_PRESET), f"the {DEFAULT_PRESET} preset (the model file has none)", backend)
    notes = []
    if header is not None:
        source = "the schedule input"
        if schedule != header.schedule:
            source += ", in place of the model file's"
            notes.append("the schedule input replaces the one that this model was trained with.")
    else:
        source = "the schedule input"
        given, mild = nominal_work(schedule), nominal_work(preset(DEFAULT_PRESET))
        if given is not None and given < mild - 1e-6:
            notes.append(
                "this model was not trained for this sparsity (on a nominal 832 x 480 clip its schedule is "
                f"{given:.0%} of the dense attention work, the {DEFAULT_PRESET} preset {mild:.0%}): the content of the "
                "video will change."
            )
    return Settings(schedule, source, backend, header, tuple(notes))


@lru_cache(maxsize=64)
def nominal_work(schedule: Schedule) -> float | None:
    """Return the attention work of ``schedule`` on a usual clip, or None if a selector decides it while sampling."""
    return attention_work(schedule, _NOMINAL_GRID, sampler_sigmas(_NOMINAL_STEPS, _NOMINAL_SHIFT)[:-1])


def file_header(model: Any) -> Header | None:
    """Return the header of the file that ``model`` was loaded from, or None if it has none or cannot be told.

    Our loader attaches it. The stock loader does not, but newer hosts remember the path. Raises HeaderError for a
    damaged or newer header.
    """
    patched = model.get_attachment(KEY)
    if isinstance(patched, Patched):
        return patched.settings.header
    try:
        path = model.cached_patcher_init[1][0]
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
    if not isinstance(path, (str, os.PathLike)) or not str(path).endswith((".safetensors", ".sft")):
        return None
    if not os.path.isfile(path):
        return None
    try:
        return read_header(path)
    except HeaderError as error:
        raise HeaderError(one_line(error)) from None
