"""What a training run can be told: sections, types, and the combinations that make sense."""

from __future__ import annotations

import difflib
import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..kernels.attention import BACKENDS
from ..kernels.presets import PRESETS, preset
from ..kernels.schedule import Schedule, ScheduleError
from .data.settings import DataConfig, Pair, Positive, Share, as_tuple
from .flow import Flow
from .names import HEAD_DIM
from .sparse import SparseAttention


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one sentence."""


Triple = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(as_tuple)]
Sigma = Annotated[float, Field(gt=0, le=1)]
Sigmas = Annotated[tuple[Sigma, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class Section(BaseModel):
    """A table of the configuration: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class ModelSection(Section):
    """Which transformer is trained: a single file, or random weights of a given size."""

    path: str | None = None
    init: Literal["file", "random"] = "file"
    dim: Positive | None = None
    ffn_dim: Positive | None = None
    layers: Positive | None = None
    text_dim: Positive = 4096

    @model_validator(mode="after")
    def _consistent(self) -> ModelSection:
        sizes = {"dim": self.dim, "ffn_dim": self.ffn_dim, "layers": self.layers}
        if self.init == "file":
            if self.path is None:
                raise ValueError("path is missing; name the Wan file to start from, or set init = 'random'")
            given = [key for key, value in sizes.items() if value is not None]
            if given:
                raise ValueError(f"{given[0]} is read from the file; remove it, or set init = 'random'")
        else:
            missing = [key for key, value in sizes.items() if value is None]
            if self.path is not None:
                raise ValueError("path and init = 'random' exclude each other; remove one")
            if missing:
                raise ValueError(f"{missing[0]} is missing; a random model needs dim, ffn_dim and layers")
            if self.dim % HEAD_DIM:
                raise ValueError(f"dim is {self.dim}, it must be a multiple of the head dimension {HEAD_DIM}")
        return self


class VaeSection(Section):
    """The video autoencoder that makes and decodes the latents; ``auto`` is bf16 where the machine computes in it."""

    path: str
    dtype: Literal["auto", "fp32", "bf16"] = "auto"


class AttentionSection(Section):
    """What self-attention does along the trajectory."""

    schedule: str = "dense"
    slots: Positive = 64
    tile: Triple | None = None
    smooth_k: bool = True
    backend: str = "auto"

    @model_validator(mode="after")
    def _usable(self) -> AttentionSection:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is '{self.backend}', it must be one of {', '.join(BACKENDS)}")
        if self.tile is not None and self.tile[0] * self.tile[1] * self.tile[2] > self.slots:
            t, h, w = self.tile
            raise ValueError(f"tile {t} x {h} x {w} has {t * h * w} tokens but slots is {self.slots}; raise slots")
        try:
            self.resolved()
        except ScheduleError as error:
            raise ValueError(f"schedule: {error}") from None
        return self

    def resolved(self) -> SparseAttention:
        """Return the attention with its schedule parsed; a single word is a preset's name."""
        text = self.schedule.strip()
        if text and not re.search(r"[\s{\[]", text):
            if text not in PRESETS:
                raise ScheduleError(f"there is no preset '{text}'{_close(text)}; presets: {', '.join(PRESETS)}")
            schedule = preset(text)
        else:
            schedule = Schedule.parse(self.schedule)
        return SparseAttention(schedule, self.slots, self.tile, self.smooth_k, self.backend)


class OptimSection(Section):
    """AdamW, its learning-rate curve, and how many samples a step sees."""

    lr: Annotated[float, Field(gt=0)] = 5e-6
    betas: Pair = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Annotated[int, Field(ge=0)] = 200
    decay: Literal["constant", "cosine"] = "constant"
    final: Share = 0.1
    clip: Annotated[float, Field(gt=0)] = 1.0
    steps: Positive
    batch: Positive = 1
    accumulate: Positive = 1
    nonfinite_limit: Positive = 5

    @model_validator(mode="after")
    def _consistent(self) -> OptimSection:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}, both must be at least 0 and below 1")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps; make it shorter than steps")
        return self

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class FlowSection(Section):
    """Which noise levels training sees."""

    shift: Annotated[float, Field(gt=0)] = 5.0
    sampling: Literal["logit-normal", "uniform"] = "logit-normal"
    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0
    text_dropout: Share = 0.0

    def resolved(self) -> Flow:
        """Return the noise-level distribution."""
        return Flow(self.shift, self.sampling, self.mean, self.std)


class ValidationSection(Section):
    """The fixed measurement on held-out latents; ``every = 0`` measures at the end only."""

    sigmas: Sigmas = (0.98, 0.93, 0.85, 0.75, 0.6, 0.45, 0.3, 0.15)
    every: Annotated[int, Field(ge=0)] = 0
    batch: Positive = 4
    seed: int = 1234


class CheckpointSection(Section):
    """Where and how often the whole training state is written; ``every = 0`` writes at the end and on a signal only."""

    dir: str
    every: Annotated[int, Field(ge=0)] = 500
    keep: Positive = 2


class EmaSection(Section):
    """A running mean of the weights, which is what gets exported and validated."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99


class OutputSection(Section):
    """Where logs, plots and the exported file go, and the export's precision."""

    dir: str
    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    dtype: Literal["bf16", "fp32"] = "bf16"
    tensorboard: bool = False


class RunConfig(Section):
    """One training run."""

    seed: Annotated[int, Field(ge=0)] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["fp32", "bf16"] = "fp32"
    threads: Positive | None = None
    activation_checkpointing: bool = False
    model: ModelSection
    vae: VaeSection
    data: DataConfig
    attention: AttentionSection = AttentionSection()
    optim: OptimSection
    flow: FlowSection = FlowSection()
    validation: ValidationSection = ValidationSection()
    checkpoint: CheckpointSection
    ema: EmaSection | None = None
    output: OutputSection


def _close(word: str) -> str:
    close = difflib.get_close_matches(word, list(PRESETS), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
