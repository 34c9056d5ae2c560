"""What an interrupted search goes on from: one file beside the table that is to come, written whole or not at all."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import ConfigError


@dataclass(frozen=True)
class Place:
    """Where a search stands: what comes next is step ``step`` of batch ``batch`` in pass ``number``."""

    number: int = 0
    batch: int = 0
    step: int = 0


class StateFile:
    """The state of the search whose settings hash to ``key``, in ``<table>.part.npz``.

    ``early`` is the hash of what is known of them before anything is sampled.
    """

    def __init__(self, table: Path, key: str = "", early: str = "") -> None:
        self.path, self.key, self.early = table.with_name(table.name + ".part.npz"), key, early

    def check(self) -> None:
        """Raise ConfigError where the file is damaged or of another search, as far as ``early`` tells."""
        if self.path.is_file():
            self._same(self._facts()[0]["early"], self.early)

    def read(self) -> tuple[Place, dict[str, np.ndarray]] | None:
        """Return place and arrays, None where nothing was begun; ConfigError for another search's or a damaged file."""
        if not self.path.is_file():
            return None
        facts, arrays = self._facts()
        self._same(facts["key"], self.key)
        return Place(*facts["place"]), arrays

    def _facts(self) -> tuple[dict, dict[str, np.ndarray]]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            facts = json.loads(str(arrays.pop("facts")))
            return {**facts, "place": [int(n) for n in facts["place"]], "early": str(facts["early"])}, arrays
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise ConfigError(
                f"{self.path}: is damaged; remove it, or say --restart, and the search begins anew"
            ) from None

    def _same(self, found: str, wanted: str) -> None:
        if found != wanted:
            raise ConfigError(
                f"{self.path}: is of a search with other settings; go on with those, say --restart to begin anew, or "
                "name another --out"
            )

    def write(self, place: Place, arrays: dict[str, np.ndarray]) -> None:
        """Keep where the search stands."""
        facts = json.dumps({"key": self.key, "early": self.early, "place": [place.number, place.batch, place.step]})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with partial.open("wb") as file:
                np.savez(file, facts=np.array(facts), **arrays)
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget it: the table is there."""
        self.path.unlink(missing_ok=True)
