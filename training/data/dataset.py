"""Cached samples as sequences: small to pickle, so spawned data workers can hold them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .condition import Condition, condition_mask, zero_image
from .errors import DataError
from .order import SetSpan
from .shards import read_shard
from .text import read_text

_OPEN = 256  # shards that are kept mapped


@dataclass(frozen=True)
class Sample:
    """Where a cached sample lies: row ``row`` of the file ``shard``; ``text`` is None for the zero embedding.

    ``bucket`` is the latent's (T, H, W). With a condition, ``condition`` holds its latents in the same rows, and
    ``image`` the pictures' features (None: zeros).
    """

    shard: Path
    row: int
    text: Path | None
    name: str
    bucket: tuple[int, int, int]
    condition: Path | None = None
    image: Path | None = None


class LatentPart(Sequence):
    """The samples of one part.

    ``part[i]`` is {'latent': float32 (16, t, h, w), 'text': float32 (L, 4096), 'name': str}, with a condition also
    {'condition': float32 (20, t, h, w), 4 of them mask, 'image': float32 (257 or 514, 1280)}. ``sets`` says where each
    data set's samples lie. Every cached file is verified when it is first read; ``repair(path)`` may make one again.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        text_length: int,
        sets: Sequence[SetSpan] = (),
        kind: Condition = "none",
        repair: Callable[[Path], None] | None = None,
    ) -> None:
        self.samples = tuple(samples)
        self.text_length = text_length
        self.sets = tuple(sets) or (SetSpan("", 1.0, 0, len(self.samples)),)
        self.kind = kind
        self._repair = repair
        self._shards: OrderedDict[Path, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.samples)

    def bucket(self, index: int) -> tuple[int, int, int]:
        """Return the latent shape (T, H, W) of a sample without reading it."""
        return self.samples[index].bucket

    def fingerprint(self) -> str:
        """Return what tells these samples, in this order and with these weights, from others."""
        digest = hashlib.sha256(repr((self.sets, self.kind)).encode())
        for sample in self.samples:
            digest.update(f"{sample.shard.name} {sample.row} {sample.text and sample.text.name}\n".encode())
        return digest.hexdigest()[:16]

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        out = {
            "latent": self._row(sample.shard, sample.row),
            "text": read_text(sample.text, self.text_length),
            "name": sample.name,
        }
        if self.kind != "none":
            latents = self._row(sample.condition, sample.row)
            out["condition"] = torch.cat([condition_mask(self.kind, sample.bucket), latents])
            out["image"] = self._row(sample.image, sample.row) if sample.image else zero_image(self.kind)
        return out

    def _row(self, path: Path, row: int) -> Tensor:
        if path in self._shards:
            self._shards.move_to_end(path)
        else:
            # Memory-mapped: only the rows that are read take memory, and processes share them.
            self._shards[path] = self._verified(path)
            if len(self._shards) > _OPEN:
                self._shards.popitem(last=False)
        return self._shards[path][row].float()

    def _verified(self, path: Path) -> Tensor:
        try:
            return read_shard(path, verify=True)
        except DataError:
            if self._repair is None:
                raise
        self._repair(path)
        return read_shard(path, verify=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_repair": None}


@dataclass(frozen=True)
class LatentDataset:
    """A cached data set: its two parts, and how many clips were left out."""

    train: LatentPart
    val: LatentPart
    bad: int = 0
