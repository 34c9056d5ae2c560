"""What a look at the containers tells about the data, before anything is decoded: for the plan of a run."""

from __future__ import annotations

from pathlib import Path

from .buckets import buckets_of, choose, histogram, tokens
from .errors import DataError, VideoError
from .listing import entries_of
from .sampling import part_range, usable_length
from .settings import DataConfig, DataSet
from .video import probe

PROBED = 200  # clips of a set that are looked at


def survey(config: DataConfig) -> tuple[list[str], int]:
    """Return lines on every data set and on the buckets that its clips go to, and about how many samples all give for
    training; missing data are named, not refused."""
    chosen: list[tuple[int, int, int]] = []
    found = [_survey_set(config, one, chosen) for one in config.all_sets]
    lines = [line for line, _ in found]
    if len(buckets_of(config)) > 1:
        for bucket, count in histogram(chosen):
            frames, height, width = bucket
            lines.append(f"{count} clips as {frames} frames of {width} x {height} ({tokens(bucket):,} tokens)")
    return lines, sum(samples for _, samples in found)


def _survey_set(config: DataConfig, one: DataSet, chosen: list[tuple[int, int, int]]) -> tuple[str, int]:
    where = Path(one.file or one.videos).expanduser()
    label = f"{one.name} (weight {one.weight:g}), {where}" if one.name else f"{where}"
    if not where.exists():
        return f"{label} (not there yet)", 0
    try:
        entries, refused = entries_of(one)
    except DataError as error:
        return f"{label}: {error}", 0
    images = sum(entry.is_image for entry in entries)
    clips = [entry for entry in entries if not entry.is_image]
    usable, train, val = 0, 0, 0
    for entry in clips[:PROBED]:
        try:
            found = probe(entry.path)
        except VideoError:
            continue
        seconds = min(found.frames / found.fps, entry.end or float("inf")) - entry.start
        length = int(seconds * config.fps)
        usable += 1
        bucket = choose(config, found.size, usable_length(config, length))
        if isinstance(bucket, str):
            continue
        chosen.append(bucket)
        train += 1
        val += bool(config.holdout and part_range(config, length, "val", bucket[0]))
    looked = f" of the first {PROBED}" if len(clips) > PROBED else ""
    pictures = f", {images} images ({config.samples_per_image} samples each)" if images else ""
    wrong = f", {len(refused)} unusable lines" if refused else ""
    scale = len(clips) / max(1, min(len(clips), PROBED))
    samples = round(train * scale) * config.samples_per_clip + images * config.samples_per_image
    return (
        f"{label}: {len(clips)} clips{looked}, {usable} readable, {train} long and large enough to train "
        f"({config.samples_per_clip} samples each), {val} to validate ({config.val_samples_per_clip} each)"
        f"{pictures}{wrong}"
    ), samples
