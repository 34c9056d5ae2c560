"""Head tables: which pattern each head of each layer uses in each stretch of the trajectory, found offline.

A table is JSON, in a file of its own or in a checkpoint's header. It holds the patterns in words (``pattern_text``) and
per band of sigma one number per layer and head; what the search measured stands beside it in ``made``, for people.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .grid import LEAST_SLOTS, MOST_SLOTS, GridError, Tiling, TokenGrid, choose_tiling
from .pattern_text import PatternError, format_pattern, parse_pattern
from .patterns import Full, Pattern, pattern_pairs
from .schedule import Schedule, ScheduleError, first_reaching
from .whole_file import write_whole

KIND = "fpsattention head table"
VERSION = 1
MAX_FILE_BYTES = 64 << 20
# One list per pattern lies on the device, as long as the longest: 64 at 720p are 800 MB, 16 are 200.
MAX_PATTERNS = 64
MAX_LAYERS, MAX_HEADS, MAX_BANDS = 512, 512, 1000
# Branches of guidance: 0 the prompt's, 1 the negative prompt's. A table with one serves both.
MAX_BRANCHES = 2


class HeadTableError(ValueError):
    """A head table that cannot be used; the message is one sentence."""


@dataclass(frozen=True, eq=False)
class Band:
    """Down to sigma ``until``: ``chosen`` uint8 ``(branches, layers, heads)``, an index into the table's patterns.

    It keeps a copy of ``chosen`` that cannot be written to, because plans are cached by what a table means.
    """

    until: float
    chosen: np.ndarray

    def __post_init__(self) -> None:
        chosen = np.array(self.chosen)
        if chosen.ndim != 3 or not chosen.size or chosen.dtype.kind not in "iu":
            raise HeadTableError(
                f"the band until {self.until:g} needs whole numbers for (branches, layers, heads), got {chosen.dtype} "
                f"of shape {chosen.shape}; give the number of each head's pattern."
            )
        if chosen.min() < 0 or chosen.max() >= MAX_PATTERNS:
            raise HeadTableError(
                f"the band until {self.until:g} names patterns {chosen.min()} to {chosen.max()}, they are counted from "
                f"0 to at most {MAX_PATTERNS - 1}; the table is damaged."
            )
        chosen = chosen.astype(np.uint8, order="C")
        chosen.flags.writeable = False
        object.__setattr__(self, "until", float(self.until))
        object.__setattr__(self, "chosen", chosen)


@dataclass(frozen=True, eq=False)
class HeadTable:
    """``patterns`` and ``bands`` from sigma 1 to 0; ``grid`` and ``tile``, ``slots`` are what the search ran on.

    ``schedule`` is the one that it was searched with and says ``heads`` where the table is used. ``model`` names what
    it was searched on, ``made`` says how. Two tables are equal if their JSON is.
    """

    patterns: tuple[Pattern, ...]
    bands: tuple[Band, ...]
    grid: TokenGrid
    tile: tuple[int, int, int]
    slots: int = 64
    schedule: Schedule = field(default_factory=lambda: Schedule.parse("0 fp8 x1 heads"))
    model: str = ""
    made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def branches(self) -> int:
        """1, or 2 where the negative prompt has patterns of its own."""
        return self.bands[0].chosen.shape[0]

    @property
    def layers(self) -> int:
        """Layers (transformer blocks) that the table knows."""
        return self.bands[0].chosen.shape[1]

    @property
    def heads(self) -> int:
        """Heads of each layer."""
        return self.bands[0].chosen.shape[2]

    @cached_property
    def digest(self) -> str:
        """A hash of what the table means: patterns and choices, not how they were found."""
        parts = [format_pattern(p) for p in self.patterns] + [f"{band.until!r}" for band in self.bands]
        found = hashlib.sha256(json.dumps([parts, list(self.bands[0].chosen.shape)]).encode())
        for band in self.bands:
            found.update(band.chosen.tobytes())
        return found.hexdigest()

    @cached_property
    def _identity(self) -> bytes:
        # Kept, because a cache that holds an equal table compares in every lookup.
        return hashlib.sha256(self.to_json().encode()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadTable) and (self is other or self._identity == other._identity)

    def __hash__(self) -> int:
        return hash(self.digest)

    def band_at(self, sigma: float) -> int:
        """Return the index of the band that holds ``sigma`` (the rule of schedules: the first that reaches down)."""
        return first_reaching([band.until for band in self.bands], sigma)

    def all_full(self, band: int, layer: int) -> bool:
        """Return whether every head of ``layer`` sees everything in ``band``."""
        return all(isinstance(self.patterns[i], Full) for i in np.unique(self.bands[band].chosen[:, layer]))

    def pattern_densities(self, tiling: Tiling) -> np.ndarray:
        """Return the exact density of each pattern on ``tiling``."""
        return np.array([pattern_pairs(p, tiling) / float(tiling.grid.tokens) ** 2 for p in self.patterns])

    def head_densities(self, tiling: Tiling, band: int) -> np.ndarray:
        """Return the exact densities of one band on ``tiling``, float64 ``(branches, layers, heads)``."""
        return self.pattern_densities(tiling)[self.bands[band].chosen]

    def counts(self) -> Counter[str]:
        """Return how many (band, branch, layer, head) use each pattern, by its words."""
        totals: Counter[str] = Counter()
        for band in self.bands:
            for index, number in zip(*np.unique(band.chosen, return_counts=True)):
                totals[format_pattern(self.patterns[index])] += int(number)
        return totals

    def misfit(self, layers: int, heads: int) -> str | None:
        """Return the sentence that says why the table cannot serve a model of ``layers`` and ``heads``, or None."""
        if (layers, heads) == (self.layers, self.heads):
            return None
        made = f" (it was searched on {self.model})" if self.model else ""
        return (
            f"the head table is for {self.layers} layers of {self.heads} heads{made}, this model has {layers} of "
            f"{heads}; load a table of this model, or search one."
        )

    def note_for(self, tiling: Tiling) -> str | None:
        """Return the sentence that says how the table was carried to another grid or tiling, or None on its own."""
        own = choose_tiling(self.grid, self.slots, self.tile)
        if tiling.grid.shape == own.grid.shape and tiling.pieces == own.pieces:
            return None
        there, here = ("x".join(map(str, t.grid.shape)) for t in (own, tiling))
        return (
            f"the head table was made for {there} latent tokens in tiles of {'x'.join(map(str, own.tile))}, this video "
            f"has {here} in tiles of {'x'.join(map(str, tiling.tile))}: its patterns were rebuilt by rule."
        )

    def to_json(self) -> str:
        """Return the table as JSON; ``HeadTable.from_json`` of it gives this table back."""
        return json.dumps(
            {
                "kind": KIND,
                "version": VERSION,
                "model": self.model,
                "layers": self.layers,
                "heads": self.heads,
                "branches": self.branches,
                "grid": list(self.grid.shape),
                "tile": list(self.tile),
                "slots": self.slots,
                "schedule": self.schedule.format(),
                "patterns": [format_pattern(p) for p in self.patterns],
                "bands": [{"until": band.until, "chosen": band.chosen.tolist()} for band in self.bands],
                "made": self.made,
            },
            separators=(",", ":"),
        )

    @staticmethod
    def from_json(text: str) -> HeadTable:
        """Return the table that ``text`` holds; raises HeadTableError, one sentence, for anything else."""
        if len(text) > MAX_FILE_BYTES:
            raise HeadTableError(f"it has {len(text) >> 20} MiB, a head table has at most {MAX_FILE_BYTES >> 20}.")
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise HeadTableError(
                f"line {error.lineno}, column {error.colno}: the JSON is damaged ({error.msg}); save the table again."
            ) from None
        except (ValueError, RecursionError):
            raise HeadTableError("the JSON holds a number or a nesting that is too large; save it again.") from None
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise HeadTableError("this is no head table; choose a file that the search of head patterns wrote.")
        version = data.get("version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise HeadTableError(f"'version' is {str(version)[:40]}, not a whole number; the file is damaged.")
        if version > VERSION:
            raise HeadTableError(
                f"it is a v{version} head table, this version reads up to v{VERSION}; update the node pack."
            )
        return _from_data(data)


def _from_data(data: dict) -> HeadTable:
    def get(key: str, kind: type, what: str) -> Any:
        value = data.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise HeadTableError(f"'{key}' is {str(value)[:40]!r}, not {what}; the file is damaged.")
        return value

    def three(key: str) -> tuple[int, int, int]:
        value = get(key, list, "three whole numbers")
        if len(value) != 3 or not all(
            isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 1 << 20 for n in value
        ):
            raise HeadTableError(f"'{key}' is {str(value)[:40]}, not three whole numbers above 0; the file is damaged.")
        return tuple(value)

    words = get("patterns", list, "a list of patterns")
    if not 1 <= len(words) <= MAX_PATTERNS:
        raise HeadTableError(f"there are {len(words)} patterns, allowed are 1 to {MAX_PATTERNS}.")
    shape = tuple(get(key, int, "a whole number") for key in ("branches", "layers", "heads"))
    rows = get("bands", list, "a list of bands")
    if not all(isinstance(row, dict) for row in rows):
        raise HeadTableError("'bands' holds something that is no band; the file is damaged.")
    try:
        return HeadTable(
            patterns=tuple(parse_pattern(word) for word in words),
            bands=tuple(_band(row, number, shape) for number, row in enumerate(rows, 1)),
            grid=TokenGrid(*three("grid")),
            tile=three("tile"),
            slots=get("slots", int, "a whole number"),
            schedule=Schedule.parse(get("schedule", str, "a schedule")),
            model=get("model", str, "a text"),
            made=get("made", dict, "a list of facts"),
        )
    except PatternError as error:
        raise HeadTableError(str(error)) from None
    except ScheduleError as error:
        raise HeadTableError(f"its schedule is damaged: {error}") from None
    except GridError as error:
        raise HeadTableError(f"its grid is damaged: {error}") from None


def _band(row: dict, number: int, shape: tuple[int, int, int]) -> Band:
    until, chosen = row.get("until"), row.get("chosen")
    if isinstance(until, bool) or not isinstance(until, int | float):
        raise HeadTableError(f"band {number}: 'until' is {str(until)[:40]!r}, not a sigma; the file is damaged.")
    # Also false for NaN, which is no end; a whole number of a thousand digits is no float either.
    if not 0 <= until <= 1:
        raise HeadTableError(f"band {number} ends at sigma {str(until)[:40]}; bands run from 1 down to 0.")
    try:
        array = np.array(chosen)
    except ValueError:
        array = np.zeros(0)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise HeadTableError(
            f"band {number}: 'chosen' is not whole numbers for {shape[0]} x {shape[1]} x {shape[2]} "
            "(branches, layers, heads); the file is damaged."
        )
    return Band(until, array)


def _check(table: HeadTable) -> None:
    if not 1 <= len(table.patterns) <= MAX_PATTERNS:
        raise HeadTableError(f"there are {len(table.patterns)} patterns, allowed are 1 to {MAX_PATTERNS}.")
    if not 1 <= len(table.bands) <= MAX_BANDS:
        raise HeadTableError(f"there are {len(table.bands)} bands of sigma, allowed are 1 to {MAX_BANDS}.")
    previous = float("inf")
    for number, band in enumerate(table.bands, 1):
        if not 0 <= band.until <= 1 or band.until >= previous:
            raise HeadTableError(f"band {number} ends at sigma {band.until:g}; bands run from 1 down to 0.")
        previous = band.until
        branches, layers, heads = band.chosen.shape
        if band.chosen.shape != table.bands[0].chosen.shape:
            raise HeadTableError(f"band {number} has another shape than the first; the table is damaged.")
        if not (1 <= branches <= MAX_BRANCHES and 1 <= layers <= MAX_LAYERS and 1 <= heads <= MAX_HEADS):
            raise HeadTableError(f"a table for {branches} branches, {layers} layers and {heads} heads is of no model.")
        if int(band.chosen.max()) >= len(table.patterns):
            raise HeadTableError(
                f"band {number} names pattern {int(band.chosen.max())}, there are {len(table.patterns)}; it is damaged."
            )
    if previous != 0:
        raise HeadTableError(f"the last band ends at sigma {previous:g}; it must end at 0.")
    if not any(phase.uses_heads for phase in table.schedule.phases):
        raise HeadTableError("its schedule never says 'heads', so the table would not be used; search it again.")
    for pattern in table.patterns:
        _check_words(pattern)
    if not LEAST_SLOTS <= table.slots <= MOST_SLOTS:
        raise HeadTableError(f"its tiles have {table.slots} slots, allowed are {LEAST_SLOTS} to {MOST_SLOTS}.")
    try:
        choose_tiling(table.grid, table.slots, table.tile)
    except GridError as error:
        raise HeadTableError(f"its tile is damaged: {error}") from None


def _check_words(pattern: Pattern) -> None:
    """Raise HeadTableError where ``pattern`` would not be read back as what it is."""
    try:
        if parse_pattern(format_pattern(pattern)) == pattern:
            return
        why = "its words mean another pattern"
    except PatternError as error:
        why = str(error).rstrip(".")
    raise HeadTableError(f"{str(pattern)[:80]} cannot be in a table ({why}); make it with parse_pattern.")


def read_head_table(path: str | Path) -> HeadTable:
    """Return the head table in a JSON file; raises HeadTableError, one sentence that names the file."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise HeadTableError(
                f"it has {path.stat().st_size >> 20} MiB, a head table has at most {MAX_FILE_BYTES >> 20}."
            )
        return HeadTable.from_json(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        raise HeadTableError(f"there is no file {path}; check the path.") from None
    except HeadTableError as error:
        raise HeadTableError(f"{path.name}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: no text, or a path that no file can have
        why = getattr(error, "strerror", None) or "it is not text"
        raise HeadTableError(f"{path.name!r} cannot be read ({why}).") from None


def write_head_table(path: str | Path, table: HeadTable) -> Path:
    """Write ``table`` to a JSON file, whole or not at all, and return its path; raises HeadTableError."""
    path = Path(path)
    try:
        write_whole(path, (table.to_json() + "\n").encode())
    except OSError as error:
        raise HeadTableError(f"{path} cannot be written ({error.strerror or type(error).__name__}).") from None
    except TypeError as error:
        raise HeadTableError(f"{path.name} cannot be written: 'made' holds what JSON cannot ({error}).") from None
    return path


def uniform_table(table: HeadTable, pattern: Pattern, bands: Sequence[float] = (0.0,)) -> HeadTable:
    """Return a table like ``table`` in which every head uses ``pattern``: what a search is compared with."""
    shape = (1, table.layers, table.heads)
    made = {"uniform": format_pattern(pattern)}
    each = tuple(Band(until, np.zeros(shape, dtype=np.uint8)) for until in bands)
    return HeadTable((pattern,), each, table.grid, table.tile, table.slots, table.schedule, table.model, made)
