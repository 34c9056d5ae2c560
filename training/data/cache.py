"""Build the cache of latents that training reads: decode each clip once, cut its samples, encode what is missing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from .clips import BadClips, Source, find_sources
from .dataset import LatentDataset, LatentPart, Sample
from .errors import DataError, VideoError
from .sampling import Part, draw_cut, level_sizes, part_range, take
from .settings import DataConfig
from .shards import check_shard, key_of, write_shard
from .text import text_files
from .video import read_clip

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

_log = logging.getLogger(__name__)

SHARD = 16  # samples per file: what an interrupted build loses at most
LATENT_CHANNELS = 16
_PIXEL_LIMIT = 8 << 30  # bytes of decoded pixels that one clip may take


@dataclass(frozen=True)
class _Shard:
    path: Path
    key: str
    part: Part
    first: int
    count: int


def build_cache(
    config: DataConfig,
    vae: AutoencoderKLWan | Callable[[], AutoencoderKLWan],
    vae_id: str,
    *,
    text_device: torch.device | str = "cpu",
    progress: bool = True,
) -> LatentDataset:
    """Return the data set of ``config``, encoding with ``vae`` whatever ``config.cache`` does not hold yet.

    ``vae`` may be a function that loads it: it is called only if something is missing. ``vae_id`` identifies its
    weights and precision, whatever latents depend on. The embedding of no text is cached as well, for dropped
    captions; texts are encoded on ``text_device``. An interrupted build goes on where it stopped. Raises ``DataError``
    with one sentence.
    """
    cache = Path(config.cache).expanduser()
    sources = find_sources(config)
    texts = text_files(config, ["", *(source.caption for source in sources)], cache, device=text_device)
    bad = BadClips(cache, len(sources), config.max_bad)
    encoder = _Encoder(vae)
    parts: dict[Part, list[list[Sample]]] = {"train": [], "val": []}
    wanted = config.samples_per_clip + (config.val_samples_per_clip if config.holdout else 0)
    with tqdm(total=wanted * len(sources), desc="latents", unit="sample", disable=not progress, delay=0.5) as bar:
        for source in sources:
            try:
                shards = _clip_shards(config, source, vae_id, cache, encoder, bar)
            except VideoError as error:
                bad.add(source, error)
                bar.update(wanted)
                continue
            text = texts.get(source.caption)
            for part, listed in parts.items():
                rows = [(s.path, row, s.first + row) for s in shards if s.part == part for row in range(s.count)]
                listed.append([Sample(path, row, text, f"{source.name}/{part}/{n}") for path, row, n in rows])
    train = [sample for clip in parts["train"] for sample in clip]
    val = [sample for clip in parts["val"] for sample in clip]
    if not train:
        raise DataError(f"{config.videos}: no usable clip is left; {bad.path} says why for each.")
    if config.holdout and not val:
        raise DataError(
            f"{config.videos}: the last {config.holdout:g} of no clip holds {config.frames} frames at"
            f" {config.fps:g} fps for validation; raise data.holdout, lower data.frames, or set data.holdout to 0."
        )
    return LatentDataset(LatentPart(train, config.text_length), LatentPart(val, config.text_length), len(bad.entries))


class _Encoder:
    """Loads the VAE when it is first needed, and encodes one sample at a time."""

    def __init__(self, vae: AutoencoderKLWan | Callable[[], AutoencoderKLWan]) -> None:
        self._vae = vae

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        from ..vae import encode

        if not isinstance(self._vae, torch.nn.Module):
            self._vae = self._vae()
        device = next(self._vae.parameters()).device
        return encode(self._vae, video[None].to(device))[0].cpu()


def _clip_shards(
    config: DataConfig, source: Source, vae_id: str, cache: Path, encoder: _Encoder, bar: tqdm
) -> list[_Shard]:
    """Return the clip's shards, all present and checked on return; raises ``VideoError`` for an unusable clip."""
    shards = [shard for part in ("train", "val") for shard in _plan(config, source, vae_id, cache, part)]
    marker = _marker(config, source, cache)
    done = {s.path: s for s in shards if check_shard(s.path, s.key, _shape(config, s.count))}
    if marker.is_file():  # a clip whose held-out part is too short has no validation shards, and that is known
        shards = [s for s in shards if s.part == "train"]
    missing = [s for s in shards if s.path not in done]
    bar.update(sum(s.count for s in done.values()))
    if not missing:
        return shards
    clip = read_clip(source.path, fps=config.fps, sizes=lambda shown: level_sizes(config, shown), limit=_PIXEL_LIMIT)
    sizes = [frames.shape[1:3] for frames in clip.frames]
    starts: dict[Part, range] = {part: part_range(config, clip.length, part) for part in ("train", "val")}
    if not starts["train"]:
        raise VideoError(
            f"{source.path}: {clip.length} frames at {config.fps:g} fps, of which the first"
            f" {1 - config.holdout:.0%} do not hold one sample of {config.frames}; use longer clips or lower"
            " data.frames.",
            decoded=clip.source_frames,
        )
    if config.holdout and not starts["val"]:
        _log.info("%s: the held-out part is shorter than %d frames; no validation samples", source.path, config.frames)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        shards = [s for s in shards if s.part == "train"]
    for shard in (s for s in missing if starts[s.part]):
        latents = []
        for number in range(shard.first, shard.first + shard.count):
            cut = draw_cut(config, source.digest, shard.part, number, starts[shard.part], sizes)
            latents.append(encoder(take(config, clip, cut)))
            bar.update(1)
        write_shard(shard.path, torch.stack(latents).half(), shard.key)
    return shards


def _plan(config: DataConfig, source: Source, vae_id: str, cache: Path, part: Part) -> list[_Shard]:
    total = config.samples_per_clip if part == "train" else config.val_samples_per_clip if config.holdout else 0
    shards = []
    for first in range(0, total, SHARD):
        count = min(SHARD, total - first)
        key = key_of(vae=vae_id, part=part, first=first, count=count, **_identity(config, source))
        shards.append(_Shard(cache / "latents" / key[:2] / f"{key}.safetensors", key, part, first, count))
    return shards


def _identity(config: DataConfig, source: Source) -> dict[str, object]:
    fields = ("fps", "frames", "height", "width", "scale_range", "flip", "holdout", "seed")
    return {"clip": source.digest, **{name: getattr(config, name) for name in fields}}


def _marker(config: DataConfig, source: Source, cache: Path) -> Path:
    return cache / "latents" / f"{key_of(no_validation=True, **_identity(config, source))}.short"


def _shape(config: DataConfig, count: int) -> tuple[int, ...]:
    return count, LATENT_CHANNELS, math.ceil((config.frames - 1) / 4) + 1, config.height // 8, config.width // 8
