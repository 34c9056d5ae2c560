"""Previews: videos sampled while a run trains, from the same seeds every time, sparse beside dense.

Sampling is collective where weights are sharded: every process renders, each its share of the videos; only the main one
decodes and writes. Whatever goes wrong is a warning, and training goes on.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..attention import compute_device
from ..config import PreviewSection, RunConfig
from ..data.text import TEXT_DIM, ZEROS, read_text, text_files
from ..distributed import World, pick_device
from ..evaluation.metrics import psnr
from ..files import replace_file
from ..model import WanTransformer3DModel
from ..sample import sample, to_frames, write_video
from ..sparse import DENSE, SparseAttention
from .preview_files import FOLDER, stem_of
from .sheet import contact_sheet, png
from .tensorboard import Board

_log = logging.getLogger(__name__)
TWINS = "Left: the run's own attention; right: dense, same weights and seeds. PSNR between them: "
GAP = 4  # pixels between the two halves of a video


@dataclass(frozen=True)
class Job:
    """One video to sample."""

    caption: int
    seed: int
    dense: bool


class Previewer:
    """Samples and writes a run's previews.

    ``val`` gives the size of the videos and, for image-to-video models, the image; without samples the size is the
    data's own. ``vae_loader`` returns the VAE; it is called for each preview, on the main process only. ``board`` is
    TensorBoard's, if there is one. Captions are encoded here, so make it before the model takes the memory.
    """

    def __init__(
        self,
        config: RunConfig,
        val: Sequence[dict[str, Any]],
        empty_text: torch.Tensor | None,
        vae_loader: Callable[[], Any],
        world: World | None = None,
        *,
        board: Board | None = None,
    ) -> None:
        self.config, self.vae_loader, self.world, self.board = config, vae_loader, world or World(), board
        self.section: PreviewSection | None = config.preview
        self.attention = config.attention.resolved()
        self.jobs: list[Job] = []
        if self.section is None:
            return
        self.sample = val[0] if len(val) else None
        self.shape = self._shape()
        self.empty = torch.zeros(1, _text_width(config)) if empty_text is None else empty_text
        self.texts = self._encode()
        # A dense run is its own twin.
        both = self.section.dense_twin and not self.attention.schedule.is_dense
        self.jobs = [
            Job(caption, seed, dense)
            for caption in range(len(self.texts))
            for seed in self.section.seeds
            for dense in ([False, True] if both else [False])
        ]

    def due(self, step: int) -> bool:
        """Return True after every so many steps, and after the last."""
        section = self.section
        return section is not None and step > 0 and (step % section.every == 0 or step == self.config.optim.steps)

    def render(self, model: WanTransformer3DModel, step: int) -> list[Path]:
        """Return the files written from the weights that the model holds now; empty on all but the main process.

        All processes must call it.
        """
        latents = self._sample(model, step)
        _free(model)
        if latents is None or not self.world.is_main:
            return []
        try:
            return self._write(latents, step)
        except Exception as error:  # decoding, encoding and disks fail in ways of their own, none worth a run
            _log.warning("no preview at step %d: %s; training goes on", step, _said(error))
            return []
        finally:
            _free(model)

    def _sample(self, model: WanTransformer3DModel, step: int) -> dict[Job, torch.Tensor] | None:
        """Return all videos' latents; None if a process could not sample."""
        world = self.world
        found: dict[Job, torch.Tensor] = {}
        for first in range(0, len(self.jobs), world.data_size):
            # Every process samples in every round, because sharded weights are gathered by all together.
            job = self.jobs[min(first + world.data_rank, len(self.jobs) - 1)]
            latents, reason = None, None
            try:
                latents = self._one(model, job)
            except dist.DistError:
                raise
            except (RuntimeError, ValueError) as error:  # out of memory is a RuntimeError
                reason = _said(error)
            for told, one, why in world.gather_objects((job, latents, reason)):
                found[told], reason = one, reason or why
            if reason is not None:  # said by the main process, whose log is read, whichever failed
                _log.warning("no preview at step %d, sampling failed: %s; training goes on", step, reason)
                return None
        return found

    def _one(self, model: WanTransformer3DModel, job: Job) -> torch.Tensor:
        section, given = self.section, self.sample or {}
        attention: SparseAttention = DENSE if job.dense else self.attention
        latents, _ = sample(
            model,
            shape=self.shape,
            seeds=[job.seed],
            text=self.texts[job.caption],
            steps=section.steps,
            shift=self.config.flow.shift,
            attention=attention,
            cfg=section.cfg,
            negative=self.empty,
            dtype=self.config.dtype,
            condition=given.get("condition"),
            image=given.get("image"),
        )
        return latents[0]

    def _write(self, latents: dict[Job, torch.Tensor], step: int) -> list[Path]:
        from ..vae import decode

        vae = self.vae_loader()
        device = next(vae.parameters()).device
        frames = {job: to_frames(decode(vae, one[None].to(device))[0]) for job, one in latents.items()}
        del vae
        folder = Path(self.config.output.dir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        stem, written, rows, said = stem_of(step), [], {}, []
        for job in self.jobs:
            if job.dense:
                continue
            own, twin = frames[job], frames.get(Job(job.caption, job.seed, True))
            caption = self.section.captions[job.caption]
            name = f"“{caption[:60]}”, seed {job.seed}" if caption else f"no caption, seed {job.seed}"
            path = folder / f"{stem}_{job.caption}_seed{job.seed}.mp4"
            together = own
            if twin is not None:
                together = torch.cat([own, torch.full((*own.shape[:2], GAP, 3), 255, dtype=torch.uint8), twin], 2)
                distance = psnr(own, twin)
                said.append(f"{'equal' if math.isinf(distance) else f'{distance:.1f} dB'} (seed {job.seed})")
            rows[f"{name}: the run's attention"] = own
            if twin is not None:
                rows[f"{name}: dense"] = twin
            written.append(write_video(path, together, self.config.data.fps))
        picture = contact_sheet(rows)
        about = {"step": step, "said": TWINS + ", ".join(said) if said else "", "density": self._density()}
        replace_file(folder / f"{stem}.json", (json.dumps(about) + "\n").encode("utf-8"))
        replace_file(folder / f"{stem}.png", png(picture))
        if self.board is not None:
            self.board.add_picture("preview", picture, step)
        return [*written, folder / f"{stem}.png"]

    def _density(self) -> float | None:
        from ...kernels.outlook import sampler_sigmas
        from ..sparse import latent_grid

        grid, negative = latent_grid(self.shape), 0.0 if self.section.cfg == 1.0 else 0.5
        sigmas = sampler_sigmas(self.section.steps, self.config.flow.shift)[:-1]
        each = [self.attention.density(grid, sigma, negative) for sigma in sigmas]
        return None if None in each else sum(each) / len(each)

    def _shape(self) -> tuple[int, int, int, int]:
        if self.sample is not None:
            return tuple(self.sample["latent"].shape)
        data = self.config.data
        return (16, (data.frames - 1) // 4 + 1, data.height // 8, data.width // 8)

    def _encode(self) -> list[torch.Tensor]:
        data, captions = self.config.data, self.section.captions
        if data.text_encoder == ZEROS:
            if any(captions):
                _log.warning("data.text_encoder is 'zeros': previews know no text, their captions are only names")
            return [self.empty] * len(captions)
        cache, device = Path(data.cache).expanduser(), pick_device(self.config.device, self.world)
        files: dict[str, Path] = {}
        for turn in (True, False):  # the others find in the cache what the main process has encoded
            if self.world.is_main == turn:
                files = text_files(data, captions, cache, device=device)
            self.world.barrier()
        return [read_text(files[caption], data.text_length) for caption in captions]


def _text_width(config: RunConfig) -> int:
    return config.model.text_dim if config.model.init == "random" else TEXT_DIM


def _said(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _free(model: WanTransformer3DModel) -> None:
    if compute_device(model).type == "cuda":
        torch.cuda.empty_cache()
