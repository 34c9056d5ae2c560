"""What a data set names: the files of a folder, or the lines of a list in JSON lines."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .captions import tidy
from .errors import DataError, VideoError
from .images import IMAGE_SUFFIXES
from .settings import DataSet
from .video import SUFFIXES

_FIELDS = ("path", "caption", "start", "end", "weight")
_KINDS = {"videos": SUFFIXES, "images": IMAGE_SUFFIXES, "both": SUFFIXES + IMAGE_SUFFIXES}


@dataclass(frozen=True)
class Entry:
    """One named file, not opened yet: ``caption`` None means that one is looked for beside it."""

    path: Path
    name: str
    caption: str | None = None
    start: float = 0.0
    end: float | None = None
    weight: float = 1.0

    @property
    def is_image(self) -> bool:
        """True for a picture, a clip of one frame."""
        return self.path.suffix.lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class Refused:
    """Something named that cannot be used, and why."""

    path: str
    error: VideoError


def find_videos(root: Path, kind: str = "videos") -> list[Path]:
    """Return the videos (or images, or both) below a folder in name order, or the one file itself.

    Whatever bears such a name is returned, also a folder or a link to nothing: it is for the reader to refuse it.
    """
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in _KINDS[kind])


def entries_of(one: DataSet) -> tuple[list[Entry], list[Refused]]:
    """Return what a data set names, and the lines of its list that name nothing usable.

    Raises ``DataError`` for a folder or list that is not there or names nothing at all.
    """
    found, refused = _lines(one) if one.file is not None else (_files(one), [])
    prefix = f"{one.name}/" if one.name else ""
    seen: dict[str, int] = {}
    named = []
    for entry in found:
        name = prefix + entry.name
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{name}#{seen[name]}"
        named.append(Entry(entry.path, name, entry.caption, entry.start, entry.end, entry.weight))
    return named, refused


def _files(one: DataSet) -> list[Entry]:
    key = f"videos of set '{one.name}'" if one.name else "data.videos"
    root = Path(one.videos).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such video or folder; set {key} to one.")
    paths, base = find_videos(root, one.kind), root.parent if root.is_file() else root
    if not paths:
        what = {"videos": "video", "images": "image", "both": "video or image"}[one.kind]
        raise DataError(
            f"{root}: no {what} in this folder ({', '.join(_KINDS[one.kind])}); set {key} to a folder with some."
        )
    return [Entry(path, path.relative_to(base).with_suffix("").as_posix()) for path in paths]


def _lines(one: DataSet) -> tuple[list[Entry], list[Refused]]:
    file = Path(one.file).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: the list is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    except OSError as error:
        raise DataError(
            f"{file}: the list cannot be read ({error.strerror}); set file of set '{one.name}' to a JSONL file."
        ) from error
    entries, refused = [], []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a caption
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            entries.append(_entry(line, where, file.parent))
        except VideoError as error:
            refused.append(Refused(where, error))
    if not entries and not refused:
        raise DataError(f"{file}: the list is empty; write one JSON object per line, with path and caption.")
    return entries, refused


def _entry(line: str, where: str, base: Path) -> Entry:
    try:
        said = json.loads(line)
    except ValueError as error:
        raise VideoError(f"{where}: the line is not JSON ({error}); write one object per line.") from None
    if not isinstance(said, dict):
        raise VideoError(f'{where}: the line is {_kind(said)}, not an object; write {{"path": ..., "caption": ...}}.')
    for key in said:
        if key not in _FIELDS:
            close = difflib.get_close_matches(key, _FIELDS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise VideoError(f"{where}: unknown field '{key}'{hint}; known: {', '.join(_FIELDS)}.")
    path = said.get("path")
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        raise VideoError(f"{where}: path is {json.dumps(path)}; name a file.")
    caption = said.get("caption")
    if caption is not None and not isinstance(caption, str):
        raise VideoError(f"{where}: caption is {_kind(caption)}; write text, or leave it out.")
    start = _number(said, "start", where, 0.0)
    end = _number(said, "end", where, None)
    weight = _number(said, "weight", where, 1.0)
    if end is not None and end <= start:
        raise VideoError(f"{where}: end is {end:g}, not after start {start:g}; both are seconds from the clip's start.")
    if weight == 0:
        raise VideoError(f"{where}: weight is 0; give more, or remove the line.")
    given = Path(path).expanduser()
    name = given.with_suffix("").as_posix().lstrip("/")
    if start or end is not None:
        name += f"@{start:g}-{'end' if end is None else f'{end:g}'}"
    full = given if given.is_absolute() else base / given
    return Entry(full, name, tidy(caption or "") or None, start, end, weight)


def _number(said: dict[str, Any], key: str, where: str, default: float | None) -> float | None:
    value = said.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise VideoError(f"{where}: {key} is {json.dumps(value)}; write a number of 0 or more.")
    return float(value)


def _kind(value: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
        dict: "an object",
    }
    return names.get(type(value), "null")
