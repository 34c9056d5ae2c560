"""What is known of a clip after one whole pass over it, kept beside the cache, so that no start decodes it again."""

from __future__ import annotations

import itertools
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import av

from .buckets import Bucket, choose
from .clips import Source
from .errors import DataError, VideoError
from .images import image_size
from .sampling import Part, image_part, part_range, usable_length
from .scenes import within_scenes
from .settings import DataConfig
from .shards import key_of
from .video import Scan, scan_clip


def facts_of(config: DataConfig, source: Source, cache: Path, *, retry: bool = False) -> Scan:
    """Return what a pass over the clip tells, from ``cache`` if it was made before.

    Raises ``VideoError`` for a clip that cannot be used. ``retry`` looks again at a clip that was refused before: a
    disk may have failed for a moment.
    """
    key = _key(config, source)
    path = cache / "clips" / key[:2] / f"{key}.json"
    known = _read(path)
    if known is not None:
        if "refused" not in known:
            return Scan(known["length"], tuple(known["size"]), known["source_frames"], tuple(known["cuts"]))
        if not retry:
            raise VideoError(f"{source.path}: {known['refused']}", int(known["decoded"]))
    try:
        facts = _scan(config, source)
    except VideoError as error:
        reason = str(error).removeprefix(f"{source.path}: ")
        _write(path, {"refused": reason, "decoded": error.decoded})
        raise
    _write(path, asdict(facts))
    return facts


def fit(config: DataConfig, source: Source, facts: Scan) -> tuple[Bucket, dict[Part, Sequence[int]]]:
    """Return the clip's bucket and the window starts of its parts; raises ``VideoError`` if it fits no bucket."""
    if source.is_image:
        bucket = choose(config, facts.size, 1, image=True)
        if isinstance(bucket, str):
            raise VideoError(f"{source.path}: the picture's pixels {bucket}.", decoded=1)
        part = image_part(config, source.digest)
        return bucket, {part: range(1), "val" if part == "train" else "train": range(0)}
    usable = usable_length(config, facts.length)
    ends = [0, *(cut for cut in facts.cuts if cut < usable), usable]
    scene = max(b - a for a, b in itertools.pairwise(ends))
    bucket = choose(config, facts.size, scene)
    if isinstance(bucket, str):
        first = f"of which the first {1 - config.holdout:.0%}" if config.holdout else "which"
        cuts = f" in {len(facts.cuts) + 1} scenes" if facts.cuts else ""
        raise VideoError(
            f"{source.path}: {facts.length} frames{cuts} at {config.fps:g} fps, {first} {bucket}.",
            decoded=facts.source_frames,
        )
    starts = {
        part: within_scenes(part_range(config, facts.length, part, bucket[0]), bucket[0], facts.cuts)
        for part in ("train", "val")
    }
    if not config.holdout:
        starts["val"] = []
    return bucket, starts


def _scan(config: DataConfig, source: Source) -> Scan:
    if source.is_image:
        return Scan(1, image_size(source.path), 1)
    return scan_clip(source.path, fps=config.fps, start=source.start, end=source.end, scene_cuts=config.scene_cuts)


def _key(config: DataConfig, source: Source) -> str:
    if source.is_image:
        return key_of(clip=source.digest, image=True)
    piece = {"start": source.start, "end": source.end}
    # Another decoder may read what this one could not.
    return key_of(clip=source.digest, fps=config.fps, scene_cuts=config.scene_cuts, decoder=av.__version__, **piece)


def _read(path: Path) -> dict | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there or damaged: made again
    needed = {"refused", "decoded"} if isinstance(known, dict) and "refused" in known else {
        "length", "size", "source_frames", "cuts",
    }  # fmt: skip
    return known if isinstance(known, dict) and needed <= known.keys() else None


def _write(path: Path, facts: dict) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path.parent}: the cache cannot be written ({error}); free some space, or set data.cache to another"
            " folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
