"""Encode what a cache lacks: threads decode ahead, one encoder works, finished files appear whole."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from .buckets import Bucket, latent_shape
from .clips import BadClips, Source
from .condition import IMAGE_DIM, ImageEncoder, condition_video, image_identity, image_tokens, known_frames
from .errors import VideoError
from .facts import facts_of, fit
from .images import read_image, resized
from .sampling import Cut, Part, draw_cut, level_sizes, take
from .settings import DataConfig
from .shards import check_shard, key_of, write_shard
from .video import Clip, Scan, read_clip

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

_log = logging.getLogger(__name__)

SHARD = 16  # samples per file: what an interrupted build loses at most
LATENT_CHANNELS = 16
_PIXEL_LIMIT = 8 << 30  # bytes of decoded pixels that one clip may take


@dataclass(frozen=True)
class File:
    """One cached tensor: where it lies, the key that it must carry, and its shape."""

    path: Path
    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """Some samples of one part of a clip: ``files`` by what they hold ('latents', 'conditions', 'images')."""

    part: Part
    first: int
    count: int
    files: dict[str, File]


@dataclass(frozen=True)
class Outcome:
    """A clip that is cached: its bucket and its shards."""

    source: Source
    bucket: Bucket
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class _Work:
    """What is left to encode of a clip: the missing files of its shards, the pixels and where they are cut."""

    outcome: Outcome
    missing: tuple[tuple[Shard, tuple[str, ...]], ...]
    clip: Clip | None
    cuts: dict[tuple[Part, int], Cut]


class Builder:
    """Makes the files of clips, and makes a damaged one again later."""

    def __init__(
        self,
        config: DataConfig,
        vae: AutoencoderKLWan | Callable[[], AutoencoderKLWan],
        vae_id: str,
        cache: Path,
        device: torch.device | str,
    ) -> None:
        self.config, self.vae_id, self.cache = config, vae_id, cache
        self.image_id = image_identity(config.image_encoder) if config.condition != "none" else None
        self._encoder = _Encoder(config, vae, device)
        self._owners: dict[Path, Source] = {}
        self._lock = threading.Lock()

    def run(
        self,
        sources: Sequence[Source],
        *,
        progress: bool = False,
        on_bad: BadClips | None = None,
        made: bool = False,
    ) -> list[Outcome]:
        """Return the clips that can be used, all files there; what they lack is encoded.

        ``made`` says that the files were verified just now, so that their headers suffice. Refused clips are noted in
        ``on_bad``, whose share is checked as they come.
        """
        outcomes = []
        total = sum(self._wanted(source) for source in sources)
        with tqdm(total=total, desc="latents", unit="sample", disable=not progress, delay=0.5) as bar:
            for source, work in self._ahead(sources, made):
                if isinstance(work, VideoError):
                    if on_bad is not None:
                        on_bad.add(str(source.path), work)
                        on_bad.check()
                    _shrink(bar, self._wanted(source))
                    continue
                left = sum(shard.count for shard, _ in work.missing)
                _shrink(bar, self._wanted(source) - left)  # so that the rate and the end are those of encoding
                for shard, kinds in work.missing:
                    self._encode(work, shard, kinds, bar)
                outcomes.append(work.outcome)
                for shard in work.outcome.shards:
                    self._owners.update((file.path, source) for file in shard.files.values())
        return outcomes

    def release(self) -> None:
        """Drop the encoders: training needs their memory."""
        self._encoder.release()

    def repair(self, path: Path) -> None:
        """Make a file again that was found damaged while it was read; on the CPU, since a training may fill the GPU."""
        with self._lock:
            source = self._owners[path]
            _log.warning("%s: the cached file was damaged and is made again from %s", path, source.path)
            self._encoder.on_cpu()
            try:
                work = self._look(source, made=False)
                for shard, kinds in work.missing:
                    self._encode(work, shard, kinds, None)
            finally:
                self.release()

    def _wanted(self, source: Source) -> int:
        config = self.config
        if source.is_image:
            return source.samples(config.samples_per_image)
        held_out = config.val_samples_per_clip if config.holdout else 0
        return source.samples(config.samples_per_clip) + source.samples(held_out)

    def _ahead(self, sources: Iterable[Source], made: bool) -> Iterator[tuple[Source, _Work | VideoError]]:
        """Yield what is to be done, in order, looked up and decoded ahead by threads."""
        pool = ThreadPoolExecutor(self.config.workers, thread_name_prefix="decode")
        waiting: deque[tuple[Source, Future[_Work]]] = deque()
        try:
            for source in sources:
                waiting.append((source, pool.submit(self._look, source, made)))
                if len(waiting) > self.config.workers:
                    yield _result(*waiting.popleft())
            while waiting:
                yield _result(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _look(self, source: Source, made: bool) -> _Work:
        """Return what a clip lacks, with its pixels if it lacks something; raises ``VideoError``."""
        facts = facts_of(self.config, source, self.cache, retry=not made)
        bucket, starts = fit(self.config, source, facts)
        if not source.is_image and not starts["train"]:
            raise VideoError(f"{source.path}: no scene holds one sample of {bucket[0]} frames; use longer clips.")
        shards = tuple(s for part in ("train", "val") if starts[part] for s in self._plan(source, bucket, part))
        outcome = Outcome(source, bucket, shards)
        missing = []
        for shard in shards:
            kinds = [k for k, f in shard.files.items() if not check_shard(f.path, f.key, f.shape, content=not made)]
            if kinds:
                missing.append((shard, tuple(kinds)))
        if not missing:
            return _Work(outcome, (), None, {})
        sizes = level_sizes(self.config, bucket, facts.size)
        cuts = {
            (shard.part, number): draw_cut(
                self.config, bucket, source.digest, shard.part, number, starts[shard.part], sizes
            )
            for shard, _ in missing
            for number in range(shard.first, shard.first + shard.count)
        }
        return _Work(outcome, tuple(missing), self._pixels(source, bucket, facts, sizes, cuts.values()), cuts)

    def _pixels(
        self, source: Source, bucket: Bucket, facts: Scan, sizes: list[tuple[int, int]], cuts: Iterable[Cut]
    ) -> Clip:
        if source.is_image:
            frames = tuple(image[None] for image in resized(read_image(source.path), sizes))
            return Clip(frames, self.config.fps, self.config.fps, 1, facts.size)
        keep: list[set[int]] = [set() for _ in sizes]
        for cut in cuts:
            keep[cut.level].update(range(cut.start, cut.start + bucket[0]))
        piece = {"start": source.start, "end": source.end}
        return read_clip(source.path, fps=self.config.fps, sizes=sizes, limit=_PIXEL_LIMIT, keep=keep, **piece)

    def _encode(self, work: _Work, shard: Shard, kinds: tuple[str, ...], bar: tqdm | None) -> None:
        made: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        for number in range(shard.first, shard.first + shard.count):
            video = take(work.outcome.bucket, work.clip, work.cuts[shard.part, number])
            for kind in kinds:
                made[kind].append(self._encoder(kind, video))
            if bar is not None:
                bar.update(1)
        for kind, tensors in made.items():
            write_shard(shard.files[kind].path, torch.stack(tensors).half(), shard.files[kind].key)

    def _plan(self, source: Source, bucket: Bucket, part: Part) -> list[Shard]:
        config = self.config
        if source.is_image:
            total = source.samples(config.samples_per_image)
        else:
            total = source.samples(config.samples_per_clip if part == "train" else config.val_samples_per_clip)
        depends = self._identity(source, bucket)
        shards = []
        for first in range(0, total, SHARD):
            count = min(SHARD, total - first)
            place = {"part": part, "first": first, "count": count}
            latents = (count, LATENT_CHANNELS, *latent_shape(bucket))
            files = {"latents": self._file("latents", latents, vae=self.vae_id, **place, **depends)}
            if config.condition != "none":
                shown = {"condition": config.condition, **place, **depends}
                files["conditions"] = self._file("conditions", latents, vae=self.vae_id, **shown)
                if self.image_id is not None:
                    feature = (count, image_tokens(config.condition), IMAGE_DIM)
                    files["images"] = self._file("images", feature, encoder=self.image_id, **shown)
            shards.append(Shard(part, first, count, files))
        return shards

    def _file(self, kind: str, shape: tuple[int, ...], **depends: object) -> File:
        key = key_of(**depends)
        return File(self.cache / kind / key[:2] / f"{key}.safetensors", key, shape)

    def _identity(self, source: Source, bucket: Bucket) -> dict[str, object]:
        """Return all that the pixels of a clip's samples depend on."""
        config = self.config
        out = dict(zip(("frames", "height", "width"), bucket, strict=True))
        out |= {"clip": source.digest, "scale_range": config.scale_range, "flip": config.flip, "seed": config.seed}
        if source.is_image:
            return {**out, "image": True}
        out |= {"fps": config.fps, "holdout": config.holdout}
        if source.start or source.end is not None:
            out["piece"] = (source.start, source.end)
        if config.scene_cuts:
            out["scene_cuts"] = True
        return out


class _Encoder:
    """Loads the VAE and the picture encoder when they are first needed, and encodes one sample at a time."""

    def __init__(
        self,
        config: DataConfig,
        vae: AutoencoderKLWan | Callable[[], AutoencoderKLWan],
        device: torch.device | str,
    ) -> None:
        self._config, self._given, self._device = config, vae, device
        self._vae: AutoencoderKLWan | None = None
        self._images: ImageEncoder | None = None

    def __call__(self, kind: str, video: Tensor) -> Tensor:
        if kind == "images":
            if self._images is None:
                self._images = ImageEncoder(self._config.image_encoder, self._device)
            return self._images(known_frames(self._config.condition, video))
        return self._latent(video if kind == "latents" else condition_video(self._config.condition, video))

    def _latent(self, video: Tensor) -> Tensor:
        from ..vae import encode

        vae = self._load()
        return encode(vae, video[None].to(next(vae.parameters()).device))[0].cpu()

    def _load(self) -> AutoencoderKLWan:
        if self._vae is None:
            self._vae = self._given if isinstance(self._given, torch.nn.Module) else self._given()
        return self._vae

    def on_cpu(self) -> None:
        """Work on the CPU until released."""
        self._images = ImageEncoder(self._config.image_encoder) if self._images is not None else None
        if not isinstance(self._given, torch.nn.Module):
            self._load().cpu()

    def release(self) -> None:
        """Forget what was loaded."""
        self._vae = self._images = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _result(source: Source, future: Future[_Work]) -> tuple[Source, _Work | VideoError]:
    try:
        return source, future.result()
    except VideoError as error:
        return source, error


def _shrink(bar: tqdm, by: int) -> None:
    """Take what need not be encoded out of the bar's total."""
    if by and bar.total is not None:
        bar.total -= by
        with contextlib.suppress(AttributeError):  # a disabled bar has nothing to draw
            bar.refresh()
