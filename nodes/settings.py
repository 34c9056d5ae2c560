"""What a patched model runs, where that came from, and what belongs to it: schedule, tile, backend, file header."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from ..kernels.checkpoint import Header, HeaderError, read_header
from ..kernels.grid import TokenGrid
from ..kernels.head_table import HeadTable
from ..kernels.outlook import sampler_sigmas
from ..kernels.plan import attention_work
from ..kernels.presets import preset
from ..kernels.schedule import Schedule
from ..kernels.selectors import build_selector
from .dense_blocks import format_blocks
from .record import Recorder
from .sentence import one_line

# One key for the wrapper, the callbacks, the attachment and the per-call state in transformer_options.
KEY = "fpsattention"

DEFAULT_PRESET = "mild"
FROM_FILE = "the model file"
FROM_TABLE = "the head table"

# A 832x480 clip of 81 frames over 20 steps at Wan's usual shift: only to compare two schedules.
_NOMINAL_GRID = TokenGrid(21, 30, 52)
_NOMINAL_SHIFT = 8.0
_NOMINAL_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """The choices behind one patch. ``source`` says in words where the schedule came from; ``dense_blocks`` stay dense
    whatever it says. ``table`` decides where it says ``heads``, ``table_source`` is where that came from."""

    schedule: Schedule
    source: str
    backend: str = "auto"
    header: Header | None = None
    notes: tuple[str, ...] = ()
    dense_blocks: frozenset[int] = frozenset()
    table: HeadTable | None = None
    table_source: str = ""

    @property
    def choices(self) -> str:
        """Return what was chosen beside the schedule, in words."""
        dense = f", blocks {format_blocks(self.dense_blocks)} always dense" if self.dense_blocks else ""
        heads = f", head table from {self.table_source}" if self.table is not None else ""
        return f"backend {self.backend}{heads}{dense}"

    @property
    def tiles(self) -> dict[str, Any]:
        """What ``plans_for`` takes beside schedule and grid: the head table, and the tile of the file, else of the
        table, else the defaults."""
        table = {} if self.table is None else {"table": self.table}
        if self.header is not None:
            trained = {"slots": self.header.slots, "tile": self.header.tile, "smooth_k": self.header.smooth_k}
            return trained | table
        return table if self.table is None else table | {"slots": self.table.slots, "tile": self.table.tile}


@dataclass(frozen=True)
class Patched:
    """Attached to a patched model and shared by its clones."""

    settings: Settings
    recorder: Recorder = field(default_factory=Recorder)


def choose_settings(
    header: Header | None, schedule: Schedule | None, backend: str, table: HeadTable | None = None
) -> Settings:
    """Return the settings for a model with ``header`` when the user gave ``schedule`` and the head ``table`` (or None).

    The file's schedule is the default, the mild preset where there is none; a table brings its own. An override is
    named, and one that is stronger than the weights were trained for is said to be. Raises SelectorError for a schedule
    that needs a head table where there is none.
    """
    if schedule is None and table is None:
        if header is not None:
            return _with_table(Settings(header.schedule, FROM_FILE, backend, header), None)
        return Settings(preset(DEFAULT_PRESET), f"the {DEFAULT_PRESET} preset (the model file has none)", backend)
    notes = []
    source = "the schedule input" if schedule is not None else FROM_TABLE
    schedule = table.schedule if schedule is None else schedule
    if header is not None:
        if schedule != header.schedule:
            what = "the head table's schedule" if source == FROM_TABLE else source
            notes.append(f"{what} replaces the one that this model was trained with.")
            source += ", in place of the model file's"
    else:
        given, mild = nominal_work(schedule, table), nominal_work(preset(DEFAULT_PRESET))
        if given is not None and given < mild - 1e-6:
            notes.append(
                "this model was not trained for this sparsity (on a nominal 832 x 480 clip its schedule is "
                f"{given:.0%} of the dense attention work, the {DEFAULT_PRESET} preset {mild:.0%}): the content of the "
                "video will change."
            )
    return _with_table(Settings(schedule, source, backend, header, tuple(notes)), table)


def _with_table(settings: Settings, given: HeadTable | None) -> Settings:
    """Return ``settings`` with the head table that its schedule needs: the ``given`` one, else the file's."""
    own = settings.header.heads if settings.header is not None else None
    if not settings.schedule.uses_heads:
        unused = "the head table at the input 'heads' is not used: the schedule never says 'heads'."
        return settings if given is None else replace(settings, notes=(*settings.notes, unused))
    table, notes = own if given is None else given, settings.notes
    for phase in settings.schedule.phases:
        if phase.uses_heads:
            # Says what is missing where there is no table.
            build_selector(phase, table)
    source = FROM_FILE if given is None else "the heads input"
    if None not in (given, own) and given != own:
        source += ", in place of the model file's"
        notes += ("the heads input replaces the head table that this model's file carries.",)
    return replace(settings, table=table, table_source=source, notes=notes)


@lru_cache(maxsize=64)
def nominal_work(schedule: Schedule, table: HeadTable | None = None) -> float | None:
    """Return the attention work of ``schedule`` on a usual clip, or None if a selector decides it while sampling, or a
    head table that is not given."""
    tile = {} if table is None else {"slots": table.slots, "tile": table.tile, "table": table}
    return attention_work(schedule, _NOMINAL_GRID, sampler_sigmas(_NOMINAL_STEPS, _NOMINAL_SHIFT)[:-1], **tile)


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
