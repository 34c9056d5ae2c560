"""The clips of all data sets with captions and content hashes, and an account of the ones that cannot be used."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..files import file_sha256
from .captions import caption_beside
from .errors import DataError, VideoError
from .listing import Entry, Refused, entries_of
from .settings import DataConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A clip on disk: where it is, its name and caption, the SHA-256 of its content, and which set it belongs to.

    ``start`` and ``end`` (seconds, None: to the last frame) bound the piece that is used. ``weight`` scales the number
    of its samples.
    """

    path: Path
    name: str
    caption: str
    digest: str
    number: int = 0
    is_image: bool = False
    start: float = 0.0
    end: float | None = None
    weight: float = 1.0

    def samples(self, usual: int) -> int:
        """Return the number of samples of this clip, where clips usually have ``usual``."""
        return max(1, round(usual * self.weight)) if usual else 0


@dataclass(frozen=True)
class Found:
    """All that the data sets name: usable as far as that can be told without decoding, or refused."""

    sources: tuple[Source, ...]
    refused: tuple[Refused, ...]

    @property
    def total(self) -> int:
        """How many clips were named."""
        return len(self.sources) + len(self.refused)


def find_sources(config: DataConfig, cache: Path, *, progress: bool = False) -> Found:
    """Return the clips of all sets, set by set, in the order of their names or lines.

    Raises ``DataError`` if a set names nothing, or if captions are missing and ``config.captions`` says 'error'.
    Content hashes are kept in ``cache`` and taken from there for files of unchanged size and time.
    """
    entries: list[tuple[int, Entry]] = []
    refused: list[Refused] = []
    for number, one in enumerate(config.all_sets):
        named, wrong = entries_of(one)
        entries += [(number, entry) for entry in named]
        refused += wrong
    captions, readable = _captions(config, entries, refused)
    digests = _Digests(cache / "digests.json")
    sources: list[Source] = []
    with ThreadPoolExecutor(config.workers) as pool:
        hashed = pool.map(lambda item: _try(digests, item[1]), readable)
        bar = tqdm(hashed, "reading", len(readable), unit="clip", disable=not progress, delay=2)
        for (number, entry), digest in zip(readable, bar, strict=True):
            if isinstance(digest, VideoError):
                refused.append(Refused(str(entry.path), digest))
                continue
            if entry.is_image and config.condition != "none":
                reason = (
                    f"{entry.path}: an image, but condition is '{config.condition}'; leave it out of this data set."
                )
                refused.append(Refused(str(entry.path), VideoError(reason)))
                continue
            caption, image = captions[number, entry.name], entry.is_image
            piece = (entry.start, entry.end, entry.weight)
            sources.append(Source(entry.path, entry.name, caption, digest, number, image, *piece))
    digests.save()
    return Found(tuple(sources), tuple(refused))


def _captions(
    config: DataConfig, entries: list[tuple[int, Entry]], refused: list[Refused]
) -> tuple[dict[tuple[int, str], str], list[tuple[int, Entry]]]:
    """Return {(set, name): caption} and the entries that are left; captions that cannot be read go to ``refused``."""
    captions: dict[tuple[int, str], str] = {}
    left, missing = [], []
    for number, entry in entries:
        try:
            caption = entry.caption or caption_beside(entry.path)
        except VideoError as error:
            refused.append(Refused(str(entry.path), error))
            continue
        if caption is None:
            missing.append(entry)
            if config.captions == "skip":
                continue
        captions[number, entry.name] = caption or ""
        left.append((number, entry))
    if missing:
        listed = ", ".join(entry.path.with_suffix(".txt").name for entry in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        if config.captions == "error":
            raise DataError(
                f"{len(missing)} of {len(entries)} clips have no caption: {listed}{more} not found beside the videos,"
                " or empty; write them, or set data.captions to 'skip' or 'empty'."
            )
        _log.info("%d clips without caption: %s", len(missing), config.captions)
        if not left:
            raise DataError(f"every clip lacks a caption, so none is left; write {listed}{more}.")
    return captions, left


def _try(digests: _Digests, entry: Entry) -> str | VideoError:
    try:
        return digests.of(entry.path)
    except VideoError as error:
        return error


class _Digests:
    """Content hashes by path, size and time of change: terabytes are read once, not at every start."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.known: dict[str, list] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}  # only a saving of time: made again
        if not isinstance(self.known, dict):
            self.known = {}
        self.used: dict[str, list] = {}

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file; raises ``VideoError`` with one sentence if it cannot be read."""
        try:
            if path.is_dir():
                raise VideoError(f"{path}: a folder, not a file; rename it or move it away.")
            if path.is_symlink() and not path.exists():
                raise VideoError(f"{path}: a link to {os.readlink(path)}, which is not there; remove or mend it.")
            if not path.exists():
                raise VideoError(f"{path}: no such file; check the path.")
            if not path.is_file():
                raise VideoError(f"{path}: not an ordinary file; remove it.")
            stat = path.stat()
            if stat.st_size == 0:
                raise VideoError(f"{path}: the file is empty; replace it.")
            key, mark = str(path.absolute()), [stat.st_size, stat.st_mtime_ns]
            known = self.known.get(key)
            digest = known[2] if isinstance(known, list) and known[:2] == mark else file_sha256(path)
            with path.open("rb"):  # a hash of old does not say that it may be read today
                self.used[key] = [*mark, digest]
            return digest
        except OSError as error:
            raise VideoError(
                f"{path}: cannot be read ({error.strerror}); check its permissions and the disk."
            ) from error

    def save(self) -> None:
        """Keep what was used, together with what was known of other files."""
        merged = self.known | self.used
        if merged == self.known:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.file.parent, delete=False, encoding="utf-8") as out:
                json.dump(merged, out)
            os.replace(out.name, self.file)
        except OSError as error:
            _log.warning("%s: content hashes are not kept (%s)", self.file, error)


class BadClips:
    """The clips that were refused: written to ``bad.jsonl`` (path, reason, frames decoded) and counted."""

    def __init__(self, folder: Path, total: int, allowed: float) -> None:
        self.path = folder / "bad.jsonl"
        self.total = total
        self.allowed = allowed
        self.entries: list[dict[str, str | int]] = []

    def add(self, path: str, error: VideoError) -> None:
        """Note one clip."""
        self.entries.append({"path": path, "reason": str(error), "frames": error.decoded})
        _log.warning("left out: %s", error)

    def write(self) -> None:
        """Write the list as it stands; nothing if no clip is bad and none was before."""
        if not self.entries and not self.path.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries]
        self.path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")

    def check(self) -> None:
        """Raise ``DataError`` if more than the allowed share is bad."""
        if not self.entries or len(self.entries) <= self.allowed * self.total:
            return
        self.write()
        last = self.entries[-1]
        if self.total == 1:
            raise VideoError(str(last["reason"]), int(last["frames"]))
        raise DataError(
            f"{len(self.entries)} of {self.total} clips are unusable, more than data.max_bad = {self.allowed:g}"
            f" allows ({self.path} lists them; the last: {last['reason']})"
        )
