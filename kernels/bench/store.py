"""The result file: one JSON that is valid after every cell, whatever happens in between."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

FORMAT = 1
RESULTS = Path(__file__).resolve().parent.parent / "results"


class ResultError(ValueError):
    """A result file that cannot be used, or may not be written; the message is one sentence."""


def plain(value: Any) -> Any:
    """Return ``value`` as JSON takes it: numbers that are not finite become None, everything unknown its text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    item = getattr(value, "item", None)
    return plain(item()) if callable(item) and getattr(value, "size", 1) == 1 else str(value)


def write_json(path: Path, data: dict) -> None:
    """Write ``data`` to ``path`` in one step: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(plain(data), file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict:
    """Return the result file at ``path``; raises ResultError if it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"there is no result file {path}; give the path of one.") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} is no result file ({error}); give another or remove it.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("cells"), dict):
        raise ResultError(f"{path} is no result file of format {FORMAT}; give another or remove it.")
    return data


class Store:
    """A result file that grows by cells. Stand-ins are refused under the folder of committed results."""

    def __init__(self, path: Path, *, standin: bool, purpose: str) -> None:
        self.path = Path(path).resolve()
        if standin and (self.path.parent == RESULTS or RESULTS in self.path.parents):
            raise ResultError(
                f"a stand-in measures no card, so it is never written under {RESULTS.parent.name}/{RESULTS.name}; "
                "give --out another folder."
            )
        if self.path.exists():
            self.data = read_json(self.path)
            if bool(self.data.get("standin")) != standin:
                raise ResultError(f"{self.path.name} mixes stand-ins and a card; give --out another name.")
        else:
            self.data = {"format": FORMAT, "standin": standin, "purpose": purpose, "header": {}, "cells": {}}

    def done(self, name: str, retry: bool = False) -> bool:
        """Return whether the cell is recorded; with ``retry`` only a success counts."""
        cell = self.data["cells"].get(name)
        return cell is not None and (not retry or cell.get("status") == "ok")

    def add(self, name: str, result: dict) -> None:
        """Record one cell and write the file."""
        self.data["cells"][name] = result
        self.save()

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, self.data)
