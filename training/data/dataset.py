"""Cached samples as sequences: small to pickle, so spawned data workers can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .shards import read_shard
from .text import read_text


@dataclass(frozen=True)
class Sample:
    """Where a cached sample lies: row ``row`` of the file ``shard``; ``text`` is None for the zero embedding."""

    shard: Path
    row: int
    text: Path | None
    name: str


class LatentPart(Sequence):
    """The samples of one part.

    ``part[i]`` is {'latent': float32 (16, t, h, w), 'text': float32 (L, 4096), 'name': str}.
    """

    def __init__(self, samples: Sequence[Sample], text_length: int) -> None:
        self.samples = tuple(samples)
        self.text_length = text_length
        self._shards: dict[Path, Tensor] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        if sample.shard not in self._shards:
            # Memory-mapped: only the rows that are read take memory, and processes share them.
            self._shards[sample.shard] = read_shard(sample.shard)
        return {
            "latent": self._shards[sample.shard][sample.row].float(),
            "text": read_text(sample.text, self.text_length),
            "name": sample.name,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}


@dataclass(frozen=True)
class LatentDataset:
    """A cached data set: its two parts, and how many clips were left out."""

    train: LatentPart
    val: LatentPart
    bad: int = 0
