"""The calibration's file: read with suspicion, written whole or not at all, shared by several processes.

A writer holds a lock beside the file (the system's own, so a process that dies lets go), reads what is there now, puts
its entries on top and replaces the file. A reader needs no lock, because a file is only ever replaced as a whole.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .whole_file import rename, write_whole

VERSION = 1
ENVIRONMENT = "FPSATTENTION_CALIBRATION"
MAX_ENTRIES = 500
MAX_POINTS = 50
MAX_WORD = 200
MAX_NUMBER = 10**9
# Far above what MAX_ENTRIES entries need: a larger file is not one of ours.
MAX_BYTES = 8 * 2**20
LOCK_SECONDS = 10.0

_WORDS = ("card", "backend", "pattern")
_NUMBERS = ("slots", "head_dim", "tokens", "heads")
_NOTES = ("dense_backend", "torch", "triton", "driver")


class CalibrationError(ValueError):
    """A calibration that cannot be kept; the message is one sentence."""


def calibration_path() -> Path:
    """Return the file: $FPSATTENTION_CALIBRATION, else ``fpsattention/calibration.json`` in the user's cache folder."""
    named = os.environ.get(ENVIRONMENT, "").strip()
    if named:
        return Path(os.path.expanduser(named))
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "fpsattention" / "calibration.json"
    cache = os.environ.get("XDG_CACHE_HOME", "").strip() or os.path.expanduser("~/.cache")
    return Path(cache) / "fpsattention" / "calibration.json"


def shown(path: str | os.PathLike) -> str:
    """Return ``path`` for people, with ~ for the home folder."""
    text, home = str(path), os.path.expanduser("~")
    inside = home not in ("", "/") and (text == home or text.startswith(home.rstrip(os.sep) + os.sep))
    return "~" + text[len(home.rstrip(os.sep)) :] if inside else text


@dataclass(frozen=True)
class Content:
    """What a file holds: its usable ``entries``, and what keeps the others or all from use.

    ``damaged`` says what is wrong with it in half a sentence, ``refused`` in a whole one why it must be left alone.
    """

    entries: list[dict] = field(default_factory=list)
    damaged: str | None = None
    refused: str | None = None


def read(path: Path) -> Content:
    """Return the content of the file at ``path``, nothing where there is none; raises nothing."""
    try:
        if strange := _strange(path):
            return Content(refused=strange)
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Content()
    except (OSError, ValueError) as error:
        return Content(refused=f"the calibration {shown(path)} cannot be read ({_why(error)}).")
    if len(data) > MAX_BYTES:
        return Content(damaged=f"more than {MAX_BYTES // 2**20} MiB")
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return Content(damaged="no JSON text")
    if not isinstance(content, dict) or "version" not in content:
        return Content(damaged="no calibration")
    version = content["version"]
    if isinstance(version, bool) or version != VERSION:
        return Content(
            refused=f"the calibration {shown(path)} is of version {str(version)[:20]}, this one reads {VERSION}; "
            "update the node pack, or move the file away."
        )
    rows = content.get("entries")
    if not isinstance(rows, list):
        return Content(damaged="no list of entries")
    entries = [entry for row in rows if (entry := checked(row)) is not None]
    bad = len(rows) - len(entries)
    return Content(entries, f"{bad} of {len(rows)} entries make no sense" if bad else None)


def _strange(path: Path) -> str | None:
    """Return the sentence for a folder, device or pipe, which must be neither read nor replaced; raises OSError."""
    if not path.exists() or stat.S_ISREG(path.stat().st_mode):
        return None
    return f"the calibration {shown(path)} is no ordinary file; name another in ${ENVIRONMENT}."


def checked(row: object) -> dict | None:
    """Return ``row`` as an entry with exactly the known names, or None where it is none."""
    if not isinstance(row, dict):
        return None
    good = (
        all(_word(row.get(name)) for name in _WORDS)
        and all(_whole(row.get(name)) for name in _NUMBERS)
        and all(row.get(name) is None or _word(row[name]) for name in _NOTES)
        and row.get("attention") in ("fp8", "bf16")
        and (row.get("granularity") is None or _word(row["granularity"]))
        and _list(row.get("tile"), 3, 3)
        and all(map(_whole, row["tile"]))
        and (row.get("dense_ms") is None or _positive(row["dense_ms"]))
        and isinstance(row.get("measured"), str)
        and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[0-9T:.+Z-]{0,30}", row["measured"]) is not None
        and _points(row.get("points"))
    )
    if not good:
        return None
    return {
        **{name: row[name] for name in ("card", "backend", "attention")},
        "granularity": row.get("granularity"),
        **{name: row[name] for name in ("slots", "tile", "head_dim", "tokens", "heads", "pattern", "points")},
        "dense_ms": row.get("dense_ms"),
        "dense_backend": row.get("dense_backend"),
        "measured": row["measured"],
        **{name: row.get(name) for name in ("torch", "triton", "driver")},
    }


def _word(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_WORD


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_NUMBER


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1e12


def _density(value: object) -> bool:
    # 0 is a head that sees nothing: it takes time all the same.
    return (value == 0 and not isinstance(value, bool)) or (_positive(value) and value <= 1)


def _list(value: object, least: int, most: int) -> bool:
    return isinstance(value, list | tuple) and least <= len(value) <= most


def _points(points: object) -> bool:
    if not _list(points, 1, MAX_POINTS):
        return False
    if not all(_list(point, 2, 2) and _density(point[0]) and _positive(point[1]) for point in points):
        return False
    # Far enough apart that a line through two of them means something.
    return all(second[0] - first[0] >= 1e-9 for first, second in itertools.pairwise(points))


def write(path: Path, entries: list[dict]) -> None:
    """Replace the file at ``path`` by one that holds ``entries``, whole or not at all; raises OSError."""
    text = json.dumps({"version": VERSION, "entries": entries}, indent=1, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def set_aside(path: Path, content: Content) -> str:
    """Move a damaged file out of the way, keep its good entries in place; return the sentence that says so.

    The caller holds the lock. Raises OSError where the folder cannot be written.
    """
    aside = path.with_name(path.name + ".damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    rename(path, aside)
    if content.entries:
        write(path, content.entries)
    kept = f", {len(content.entries)} good entries were kept" if content.entries else ""
    return f"the calibration {shown(path)} was damaged ({content.damaged}); it was set aside as {aside.name}{kept}."


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that goes with ``path``; raises CalibrationError where another process does not let go, and OSError
    where no lock file can be made."""
    if strange := _strange(path):
        raise CalibrationError(strange)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise CalibrationError(f"another process holds the lock of the calibration {shown(path)}; try again.")
            time.sleep(0.02)
        yield
    finally:
        # Closing gives the lock back.
        os.close(handle)


def _try_lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:
        # Windows says so while another process holds it.
        return sys.platform != "win32"
    except (OSError, ImportError):
        # A file system without locks: two writers at the very same moment are then told apart by nobody.
        return True
    return True


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
