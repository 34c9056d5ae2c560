"""Find clips and their captions, and keep account of the ones that cannot be used."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from ..files import file_sha256
from .errors import DataError, VideoError
from .settings import DataConfig
from .video import SUFFIXES

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A clip on disk: its path, its name in the data set, its caption and the SHA-256 of its content."""

    path: Path
    name: str
    caption: str
    digest: str


def find_videos(root: Path) -> list[Path]:
    """Return the videos below a folder in name order, or the one file itself."""
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def find_sources(config: DataConfig) -> list[Source]:
    """Return the clips of ``config.videos`` in name order, with captions. Raises ``DataError`` if there is none."""
    root = Path(config.videos).expanduser()
    if not root.exists():
        raise DataError(f"{root}: no such video or folder; set data.videos to one.")
    paths, base = find_videos(root), root.parent if root.is_file() else root
    if not paths:
        raise DataError(
            f"{root}: no video in this folder ({', '.join(SUFFIXES)}); set data.videos to a folder with some."
        )
    captions = {path: _caption(path) for path in paths}
    missing = [path for path, caption in captions.items() if caption is None]
    if missing:
        listed = ", ".join(path.with_suffix(".txt").name for path in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        if config.captions == "error":
            raise DataError(
                f"{len(missing)} of {len(paths)} clips have no caption: {listed}{more} not found beside the videos;"
                " write them, or set data.captions to 'skip' or 'empty'."
            )
        _log.info("%d clips without caption: %s", len(missing), config.captions)
        if config.captions == "skip":
            paths = [path for path in paths if path not in set(missing)]
            if not paths:
                raise DataError(f"{root}: every clip lacks a caption, so none is left; write {listed}{more}.")
    return [
        Source(path, path.relative_to(base).with_suffix("").as_posix(), captions[path] or "", file_sha256(path))
        for path in paths
    ]


class BadClips:
    """The clips that were refused: written to ``bad.jsonl`` (path, reason, frames decoded) and counted."""

    def __init__(self, folder: Path, total: int, allowed: float) -> None:
        self.path = folder / "bad.jsonl"
        self.total = total
        self.allowed = allowed
        self.entries: list[dict[str, str | int]] = []

    def add(self, source: Source, error: VideoError) -> None:
        """Note one clip; raises ``DataError`` once more than the allowed share is bad."""
        self.entries.append({"path": str(source.path), "reason": str(error), "frames": error.decoded})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8")
        _log.warning("left out: %s", error)
        if len(self.entries) > self.allowed * self.total:
            if self.total == 1:
                raise error
            raise DataError(
                f"{len(self.entries)} of {self.total} clips are unusable, more than data.max_bad = {self.allowed:g}"
                f" allows ({self.path} lists them; the last: {error})"
            )


def _caption(path: Path) -> str | None:
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: the caption is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
