"""Cached clips as samples: parts, data sets, and what a run says about them at its start."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from .buckets import histogram, latent_shape
from .build import Outcome
from .clips import BadClips
from .dataset import LatentDataset, LatentPart, Sample
from .errors import DataError
from .order import SetSpan
from .sampling import Part
from .settings import DataConfig

_log = logging.getLogger(__name__)


def assembled(
    config: DataConfig,
    outcomes: Sequence[Outcome],
    texts: dict[str, Path],
    bad: BadClips,
    repair: Callable[[Path], None],
) -> LatentDataset:
    """Return the data set; raises ``DataError`` if a set or the validation part is left without a sample."""
    label = config.videos or f"sets {', '.join(one.name for one in config.sets)}"
    parts = {part: _part(config, outcomes, texts, part, repair) for part in ("train", "val")}
    if not len(parts["train"]):
        raise DataError(f"{label}: no usable clip is left; {bad.path} says why for each.")
    for span in parts["train"].sets:
        if not span.count:
            raise DataError(f"set '{span.name}': no usable clip is left; {bad.path} says why for each.")
    if config.holdout and not len(parts["val"]):
        if config.buckets or config.bucket_tokens or config.sets:
            wanted = "a sample of its bucket"
        else:
            wanted = f"{config.frames} frames at {config.fps:g} fps"
        raise DataError(
            f"{label}: the last {config.holdout:g} of no clip holds {wanted} for validation; raise data.holdout, lower"
            " data.frames, or set data.holdout to 0."
        )
    for line in describe(config, outcomes, parts["train"], len(bad.entries)):
        _log.info("%s", line)
    return LatentDataset(parts["train"], parts["val"], len(bad.entries))


def describe(config: DataConfig, outcomes: Sequence[Outcome], train: LatentPart, bad: int) -> list[str]:
    """Return the histogram of the buckets, and the sets with their shares, as lines."""
    chosen = [o.bucket for o in outcomes for s in o.shards if s.part == "train" for _ in range(s.count)]
    most = max(count for _, count in histogram(chosen))
    lines = [f"data: {len(train)} samples of {len(outcomes)} clips, {bad} left out"]
    for (frames, height, width), count in histogram(chosen):
        bar = "#" * max(1, round(30 * count / most))
        lines.append(f"  {frames:4d} frames of {width} x {height}: {count:7d} samples {bar}")
    if config.sets:
        whole = sum(span.weight for span in train.sets)
        for span in train.sets:
            lines.append(f"  set {span.name}: {span.count} samples, {span.weight / whole:.1%} of what a run sees")
    return lines


def _part(
    config: DataConfig, outcomes: Sequence[Outcome], texts: dict[str, Path], part: Part, repair: Callable[[Path], None]
) -> LatentPart:
    samples: list[Sample] = []
    spans: list[SetSpan] = []
    for number, one in enumerate(config.all_sets):
        first = len(samples)
        for outcome in outcomes:
            if outcome.source.number == number:
                samples += _samples(outcome, texts, part)
        spans.append(SetSpan(one.name, one.weight, first, len(samples) - first))
    return LatentPart(samples, config.text_length, spans, config.condition, repair)


def _samples(outcome: Outcome, texts: dict[str, Path], part: Part) -> list[Sample]:
    source, shape = outcome.source, latent_shape(outcome.bucket)
    out = []
    for shard in outcome.shards:
        if shard.part != part:
            continue
        condition, image = shard.files.get("conditions"), shard.files.get("images")
        for row in range(shard.count):
            out.append(
                Sample(
                    shard.files["latents"].path,
                    row,
                    texts.get(source.caption),
                    f"{source.name}/{part}/{shard.first + row}",
                    shape,
                    condition and condition.path,
                    image and image.path,
                )
            )
    return out
