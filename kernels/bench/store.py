"""The result file: one JSON that is valid after every cell, whatever happens in between."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..whole_file import write_whole

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
    write_whole(path, (json.dumps(plain(data), indent=1, allow_nan=False) + "\n").encode())


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


def identity(header: dict) -> dict[str, Any]:
    """Return what two runs must share to stand in one file, by name."""
    driver = (header.get("nvidia_smi") or {}).get("driver_version")
    found = {name: header.get(name) for name in ("card", "commit", "changes", "cuda", "cudnn", "python")}
    packages = {f"package {name}": value for name, value in (header.get("versions") or {}).items()}
    return {**found, "driver": driver, **packages}


def published(data: dict) -> str | None:
    """Return why a result is none for the README, None if it is one: stand-ins and changed code say nothing that
    others could repeat."""
    if data.get("standin") is not False:
        return "is a stand-in's"
    if data.get("purpose") != "benchmark":
        return f"holds a run for '{data.get('purpose')}', not the benchmark"
    header = data.get("header") or {}
    if header.get("dirty") or header.get("commit") in (None, "unknown"):
        return "was measured on code that no commit holds"
    return None


def newest(folder: Path = RESULTS, *, unpublished: bool = False) -> tuple[Path, dict] | None:
    """Return the newest plain benchmark's result in ``folder``, by its own date, None if there is none.

    Only those that may stand in the README count; with ``unpublished`` stand-ins and changed code as well.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = read_json(path)
        except ResultError:
            continue  # another kind of file
        if data.get("purpose") == "benchmark" if unpublished else published(data) is None:
            found.append((str((data.get("header") or {}).get("date", "")), path, data))
    return max(found, key=lambda row: row[:2])[1:] if found else None


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
            if self.data.get("purpose") != purpose:
                raise ResultError(
                    f"{self.path.name} holds a run for '{self.data.get('purpose')}', this one is for '{purpose}'; give "
                    "--out another name."
                )
        else:
            self.data = {"format": FORMAT, "standin": standin, "purpose": purpose, "header": {}, "cells": {}}

    def take_header(self, header: dict) -> None:
        """Keep ``header`` in a new file; raises ResultError where the file's own one tells of something else that the
        times depend on. A stand-in's file then begins anew: it tries the code as it is now."""
        if "card" not in header:
            return  # the process that asks failed, and so will the cells
        if self.data["header"]:
            held, now = identity(self.data["header"]), identity(header)
            other = [name for name in sorted({*held, *now}) if held.get(name) != now.get(name)]
            if not other:
                return
            if not self.data["standin"]:
                raise ResultError(
                    f"{self.path.name} was measured with {other[0]} {held.get(other[0])}, now it is "
                    f"{now.get(other[0])}; give --out another name."
                )
            self.data["cells"] = {}
        self.data["header"] = header
        self.save()

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
