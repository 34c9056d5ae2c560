"""Doing the study's jobs: one function per kind, all on the same data, base and settings."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...kernels.outlook import sampler_sigmas
from ..config import ModelSection, RunConfig
from ..loop import fit
from ..model import WanTransformer3DModel, starting_model
from ..sample import sample
from ..sparse import latent_grid
from ..stopping import StopFlag
from ..validation import validate
from .plan import Arm, Job, Measure, Quantization, Train, Videos
from .quantization import quantization_errors
from .sizes import Size
from .store import Store

SAMPLED_AT_ONCE = 4


class OutOfTimeError(Exception):
    """The budget is spent; what was begun is saved and goes on next time."""


class Deadline(StopFlag):
    """A stop that also asks for itself when the time is over."""

    def __init__(self, seconds: float | None) -> None:
        self._asked, self.end = False, math.inf if seconds is None else time.monotonic() + seconds

    @property
    def requested(self) -> bool:
        """True once a signal came or the time is over."""
        return self._asked or time.monotonic() >= self.end

    @requested.setter
    def requested(self, value: bool) -> None:
        self._asked = value

    def request(self) -> None:
        """Ask for a stop."""
        self._asked = True


class Work:
    """The study's data, base and cache, and how each job is done."""

    def __init__(
        self,
        size: Size,
        config: RunConfig,
        base: Path,
        train: Sequence[dict[str, Any]],
        held_out: Sequence[dict[str, Any]],
        store: Store,
        stop: Deadline,
        sequence_text: torch.Tensor | None = None,
    ) -> None:
        self.size, self.config, self.base, self.store, self.stop = size, config, base, store, stop
        self.train, self.held_out = train, evenly(held_out, size.validation)
        self.text = sequence_text if sequence_text is not None else train[0]["text"]

    def done(self, job: Job) -> bool:
        """Return True if the cache has the job's result, for a fine-tune its weights too."""
        return self.store.get(job) is not None and (not isinstance(job, Train) or self._weights(job.arm).is_file())

    def do(self, job: Job) -> dict[str, Any]:
        """Return the job's result, from the cache if it is there. Raises OutOfTimeError."""
        if self.done(job):
            return self.store.get(job)
        if self.stop.requested:
            raise OutOfTimeError
        start = time.monotonic()
        result = {Train: self._train, Measure: self._measure, Videos: self._videos, Quantization: self._quantization}[
            type(job)
        ](job)
        result["seconds"] = round(time.monotonic() - start, 1)
        self.store.put(job, result)
        return result

    def _weights(self, arm: Arm) -> Path:
        return self.store.path(Train(arm), ".safetensors")

    def fine_tune_config(self, arm: Arm) -> RunConfig:
        """Return the run of an arm: the base's own settings except for what an arm is."""
        config, attention = self.config, self.size.attention(arm.window)
        folder = self.store.path(Train(arm), "")
        schedule = "dense" if arm.window == "dense" else attention.schedule.format()
        change = {
            "seed": 1000 + arm.seed,
            "model": {"path": str(self.base)},
            "attention": {"schedule": schedule, "slots": self.size.slots, "tile": list(self.size.tile)},
            "optim": {
                **config.optim.model_dump(mode="json"),
                "steps": arm.steps, "lr": arm.rate, "warmup": min(10, arm.steps - 1), "decay": "cosine", "final": 0.1,
            },
            "loss": {"teacher": arm.teacher},
            "ramp": {"steps": arm.ramp},
            "validation": {**config.validation.model_dump(mode="json"), "every": 0},
            "checkpoint": {"dir": str(folder / "checkpoints"), "every": 100, "keep": 1, "background": False},
            "output": {"dir": str(folder), "name": "arm", "dtype": "fp32", "report": False},
        }  # fmt: skip
        return RunConfig.model_validate({**config.model_dump(mode="json"), **change})

    def _train(self, job: Train) -> dict[str, Any]:
        config, target = self.fine_tune_config(job.arm), self._weights(job.arm)
        result = fit(config, self.train, resume="auto", progress=None, stop=self.stop)
        if result.stopped:
            raise OutOfTimeError
        _keep(result.model.state_dict(), target)
        shutil.rmtree(self.store.path(job, ""), ignore_errors=True)
        losses = [record["loss"] for record in result.records]
        sigmas = hashlib.sha256(repr([record["sigma"] for record in result.records]).encode()).hexdigest()[:12]
        return {"steps": result.step, "skipped": result.skipped, "losses": _rounded(losses), "sigmas": sigmas}

    def model(self, arm: Arm | None) -> WanTransformer3DModel:
        """Return the weights of an arm (training it first if it must be), or the base's."""
        model = starting_model(ModelSection(path=str(self.base)), 0)
        if arm is not None:
            self.do(Train(arm))
            model.load_state_dict(load_file(str(self._weights(arm))))
        return model.to(device_of(self.config)).eval()

    def _measure(self, job: Measure) -> dict[str, Any]:
        attention, section = self.size.attention(job.window), self.config.validation
        result = validate(
            self.model(job.arm),
            self.held_out,
            sigmas=job.sigmas,
            attention=attention,
            seed=section.seed,
            batch=section.batch,
            dtype=self.config.dtype,
        )
        return {
            "loss": result.loss,
            "per_sigma": {f"{sigma:g}": loss for sigma, loss in result.per_sigma.items()},
            "density": self._density(job.window, job.sigmas),
        }

    def _density(self, window: str, sigmas: Sequence[float]) -> float:
        attention = self.size.attention(window)
        return sum(attention.density(self.grid, sigma) for sigma in sigmas) / len(sigmas)

    @property
    def grid(self):
        """The token grid of the data."""
        return latent_grid(self.train[0]["latent"].shape)

    def _videos(self, job: Videos) -> dict[str, Any]:
        from ..vae import decode, load_vae

        vae = load_vae(self.config.vae.path).to(device_of(self.config))
        models = {"control": self.model(job.arm.control), "arm": self.model(job.arm)}
        attention = {"control": self.size.attention("dense"), "arm": self.size.attention(job.arm.window)}
        found: list[float] = []
        for first in range(0, job.count, SAMPLED_AT_ONCE):
            if self.stop.requested:
                raise OutOfTimeError
            seeds = tuple(range(first, min(job.count, first + SAMPLED_AT_ONCE)))
            pictures = {}
            for name, model in models.items():
                kept = self._sampled(job, name, seeds[0])
                if kept.is_file():
                    latents = load_file(str(kept))["latents"]
                else:
                    latents, _ = sample(
                        model,
                        shape=tuple(self.train[0]["latent"].shape),
                        seeds=seeds,
                        text=self.text,
                        steps=job.steps,
                        shift=self.config.flow.shift,
                        attention=attention[name],
                        dtype=self.config.dtype,
                    )
                    _keep({"latents": latents}, kept)
                pictures[name] = [video.float().clamp(-1, 1) for video in decode(vae, latents)]
            found += [psnr(a, b) for a, b in zip(pictures["control"], pictures["arm"])]
        density = self._density(job.arm.window, sampler_sigmas(job.steps, self.config.flow.shift)[:-1])
        return {"psnr": _rounded(found), "density": density, "steps": job.steps}

    def _sampled(self, job: Videos, name: str, first: int) -> Path:
        arm = job.arm if name == "arm" else job.arm.control
        return self.store.path(Videos(arm, job.count, job.steps), f"-{first:03d}.safetensors")

    def _quantization(self, job: Quantization) -> dict[str, Any]:
        return quantization_errors(self.model(None), evenly(self.held_out, 2), job.sigma, self.size, self.grid)


def _keep(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(partial))
    partial.replace(path)


def evenly(samples: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return at most ``count`` samples, evenly spread over all."""
    total = len(samples)
    return [samples[i * total // count] for i in range(count)] if count < total else list(samples)


def psnr(reference: torch.Tensor, video: torch.Tensor) -> float:
    """Return the PSNR in dB of a video in [-1, 1]; 100 for equal videos."""
    error = float((reference - video).square().mean())
    return min(100.0, 10 * math.log10(4 / error)) if error else 100.0


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 5) for value in values]


def device_of(config: RunConfig) -> torch.device:
    """Return the device of a configuration."""
    from ..distributed import World, pick_device

    return pick_device(config.device, World())
