"""What attention costs on a card: measured once by the benchmark node, kept in one file, asked by everything that tells
expected seconds.

Nothing here guesses: where a card, a head size, a pattern or a similar size was not measured there is no estimate.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import calibration_file
from .calibration_file import MAX_ENTRIES, VERSION, CalibrationError, calibration_path, checked, shown

__all__ = [
    "VERSION",
    "Calibration",
    "CalibrationError",
    "Estimate",
    "calibration_path",
    "entry_key",
    "interpolate",
    "is_near",
]

# What tells two entries apart; a new one with the same key takes the old one's place.
KEY = ("card", "backend", "attention", "granularity", "slots", "tile", "head_dim", "tokens", "heads", "pattern")
# Time grows with the square of the tokens only where launch and overhead no longer count: beyond this ratio of tokens,
# up or down, a measurement says nothing.
REACH = 4


@dataclass(frozen=True)
class Estimate:
    """The expected milliseconds of one attention call at a density, and of the dense call beside it.

    ``entry`` is the measurement that it comes from; ``scaled`` says that tokens or heads differed from it.
    """

    ms: float
    dense_ms: float | None
    entry: dict
    scaled: bool


def interpolate(points: Sequence[Sequence[float]], density: float) -> float:
    """Return the milliseconds at ``density`` from ``[[density, ms], ...]`` in ascending order.

    Exactly: one point (d0, m0) is proportional, ``m0 * density / d0`` (m0 where d0 is 0). Otherwise the segment is the
    first whose upper end is not below ``density``, or the last one; on its line through (d0, m0) and (d1, m1) the value
    is ``m0 + (m1 - m0) * (density - d0) / (d1 - d0)``, at both ends also outside it, and never below 0.
    """
    if len(points) == 1:
        d0, m0 = points[0]
        return max(0.0, m0 * density / d0 if d0 > 0 else m0)
    index = next((i for i in range(1, len(points)) if points[i][0] >= density), len(points) - 1)
    (d0, m0), (d1, m1) = points[index - 1], points[index]
    return max(0.0, m0 + (m1 - m0) * (density - d0) / (d1 - d0))


@dataclass
class Calibration:
    """The entries of the file; ``problem`` is the sentence that says why some or all could not be read."""

    entries: list[dict] = field(default_factory=list)
    problem: str | None = None

    @staticmethod
    def load(path: str | os.PathLike | None = None) -> Calibration:
        """Return what the file at ``path`` (default ``calibration_path()``) holds; empty where there is none.

        Raises nothing: ``problem`` says what is wrong. A damaged file is set aside, a newer one is left as it is.
        """
        where = _where(path)
        content = calibration_file.read(where)
        if content.damaged is None:
            return Calibration(content.entries, content.refused)
        try:
            with calibration_file.locked(where):
                # Another process may have put it right in the meantime.
                content = calibration_file.read(where)
                said = calibration_file.set_aside(where, content) if content.damaged else content.refused
        except CalibrationError as error:
            said = str(error)
        except OSError as error:
            why = error.strerror or type(error).__name__
            said = f"the calibration {shown(where)} is damaged ({content.damaged}) and cannot be set aside ({why})."
        return Calibration(content.entries, said)

    def save(self, path: str | os.PathLike | None = None) -> None:
        """Bring the entries into the file at ``path`` (default ``calibration_path()``), atomically.

        What another process wrote since ``load`` stays: the file is read again under a lock, and of two entries with
        one key the later measurement wins. Raises CalibrationError where the file is of another version or cannot be
        written.
        """
        where = _where(path)
        try:
            with calibration_file.locked(where):
                content = calibration_file.read(where)
                if content.refused:
                    raise CalibrationError(content.refused)
                if content.damaged:
                    self.problem = calibration_file.set_aside(where, content)
                self.entries = _merged(content.entries, self.entries)
                calibration_file.write(where, self.entries)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise CalibrationError(f"the calibration {shown(where)} cannot be written ({why}).") from None

    def put(self, entry: dict) -> None:
        """Add ``entry`` in place of the one with the same key; raises CalibrationError for one that makes no sense.

        Beyond ``MAX_ENTRIES`` the oldest measurements go, those of a search's patterns before those of windows.
        """
        good = checked(entry)
        if good is None:
            raise CalibrationError(f"this is no calibration entry: {str(entry)[:200]}.")
        key = entry_key(good)
        self.entries = _bounded([old for old in self.entries if entry_key(old) != key] + [good])

    def preferring(self, dense: str) -> Calibration:
        """Return the entries with the dense times of the attention ``dense`` alone, on every card and head size where
        it was measured.

        A host may run another dense attention than it did when some of the entries were measured.
        """

        def place(e: dict) -> tuple:
            return e["card"], e["head_dim"]

        known = {place(e) for e in self.entries if e["dense_ms"] is not None and e["dense_backend"] == dense}
        none = {"dense_ms": None, "dense_backend": None}
        entries = [e | none if place(e) in known and e["dense_backend"] != dense else e for e in self.entries]
        return Calibration(entries, self.problem)

    def milliseconds(
        self,
        card: str,
        tokens: int,
        heads: int,
        head_dim: int,
        attention: str,
        granularity: str | None,
        density: float,
        pattern: str = "window",
        *,
        backend: str | None = None,
        slots: int | None = None,
        tile: Sequence[int] | None = None,
        any_size: bool = False,
    ) -> Estimate | None:
        """Return the expected milliseconds of one call of ``attention`` at ``density``, or None where nothing fits or
        tokens or heads are below 1.

        The rule, exactly. Only entries that ``is_near`` holds for count, or with ``any_size`` all, which tells what was
        measured elsewhere and is no estimate. Candidates: of these, those with this ``card``, ``pattern``,
        ``head_dim`` and ``attention``; of them those with this ``backend``, because another one's times say nothing
        about it; where it is None, those of any backend but 'reference', or all if there are no others. If some of them
        have this ``granularity``, only those; if ``slots`` is given and some of these have it, only those. For the
        attention 'dense': entries with this ``card`` and ``head_dim`` whose ``dense_ms`` is not null, which then takes
        the place of ``ms`` below. Of the candidates those with the least ``abs(log(tokens / entry.tokens))``, of those
        the ones with this ``tile`` if it is given and there are any, of those the greatest ``measured`` as text, of
        those the last in the file.

        Then ``scale = (tokens / entry.tokens) ** 2 * heads / entry.heads``,
        ``ms = interpolate(entry.points, density) * scale`` and ``dense_ms = entry.dense_ms * scale`` (None if null);
        ``scaled`` is whether ``entry.tokens != tokens or entry.heads != heads``.
        """
        found = [e for e in self.entries if (e["card"], e["head_dim"]) == (card, head_dim)]
        found = [e for e in found if any_size or is_near(e["tokens"], tokens)]
        if attention == "dense":
            found = [e for e in found if e["dense_ms"] is not None]
        else:
            found = [e for e in found if (e["pattern"], e["attention"]) == (pattern, attention)]
            if backend is None:
                found = [e for e in found if e["backend"] != "reference"] or found
            else:
                found = [e for e in found if e["backend"] == backend]
            found = [e for e in found if e["granularity"] == granularity] or found
            found = [e for e in found if e["slots"] == slots] or found
        if not found or tokens < 1 or heads < 1:
            return None

        def fitness(e: dict) -> tuple:
            same_tile = attention != "dense" and tile is not None and list(e["tile"]) == list(tile)
            return -abs(math.log(tokens / e["tokens"])), same_tile, e["measured"]

        # max keeps the first of equals, so the last in the file is asked first.
        best = max(reversed(found), key=fitness)
        scale = (tokens / best["tokens"]) ** 2 * heads / best["heads"]
        dense = None if best["dense_ms"] is None else best["dense_ms"] * scale
        return Estimate(
            ms=dense if attention == "dense" else interpolate(best["points"], density) * scale,
            dense_ms=dense,
            entry=best,
            scaled=(best["tokens"], best["heads"]) != (tokens, heads),
        )


def is_near(measured: int, wanted: int) -> bool:
    """Return whether times of ``measured`` tokens say anything about ``wanted`` ones."""
    return measured <= REACH * wanted and wanted <= REACH * measured


def entry_key(entry: dict) -> tuple:
    """Return what tells ``entry`` from others."""
    return tuple(tuple(value) if isinstance(value, list) else value for value in (entry[name] for name in KEY))


def _where(path: str | os.PathLike | None) -> Path:
    return Path(path) if path is not None else calibration_path()


def _merged(theirs: list[dict], ours: list[dict]) -> list[dict]:
    found = {entry_key(entry): entry for entry in theirs}
    for entry in ours:
        there = found.get(entry_key(entry))
        if there is None or entry["measured"] >= there["measured"]:
            # A replaced entry moves to the end, as put would have it.
            found.pop(entry_key(entry), None)
            found[entry_key(entry)] = entry
    return _bounded(list(found.values()))


def _bounded(entries: list[dict]) -> list[dict]:
    if len(entries) <= MAX_ENTRIES:
        return entries

    # A search measures dozens of patterns at once; previews live on windows.
    def worth(i: int) -> tuple:
        return entries[i]["pattern"] == "window", entries[i]["measured"], i

    newest = sorted(range(len(entries)), key=worth)[-MAX_ENTRIES:]
    return [entries[i] for i in sorted(newest)]
