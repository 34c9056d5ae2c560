"""What a training run can be told: sections, types, and the combinations that make sense."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator

from ..kernels.attention import BACKENDS
from ..kernels.checkpoint import HeaderError, read_header
from ..kernels.head_table import HeadTable, HeadTableError, read_head_table
from ..kernels.presets import PRESETS, preset
from ..kernels.schedule import Schedule, ScheduleError
from .data.settings import Count, DataConfig, Pair, Place, Positive, Section, Seed, Share, Threads, as_tuple
from .flow import Flow
from .layer_settings import Fp8LinearsSection, LoraSection, TaloraSection
from .names import HEAD_DIM
from .sparse import SparseAttention


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one sentence."""


Triple = Annotated[tuple[Positive, Positive, Positive], BeforeValidator(as_tuple)]
Sigma = Annotated[float, Field(gt=0, le=1)]
Sigmas = Annotated[tuple[Sigma, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class ModelSection(Section):
    """Which transformer is trained: a single file, or random weights of a given size."""

    path: Place | None = None
    init: Literal["file", "random"] = "file"
    dim: Positive | None = None
    ffn_dim: Positive | None = None
    layers: Annotated[int, Field(gt=0, le=1000)] | None = None
    text_dim: Positive = 4096
    kind: Literal["t2v", "i2v", "flf"] | None = None
    """What a random model conditions on; a file says it itself."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelSection:
        if self.init == "file" and self.kind is not None:
            raise ValueError("kind is read from the file; remove it, or set init = 'random'")
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

    path: Place
    dtype: Literal["auto", "fp32", "bf16"] = "auto"


class AttentionSection(Section):
    """What self-attention does along the trajectory."""

    schedule: str = "dense"
    heads: Place | None = None
    """The head table (JSON) of a schedule that says 'heads'; None: the one that model.path carries."""
    slots: Positive = 64
    tile: Triple | None = None
    smooth_k: bool = True
    backend: str = "auto"
    _table: HeadTable | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _usable(self, info: ValidationInfo) -> AttentionSection:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend is '{self.backend}', it must be one of {', '.join(BACKENDS)}")
        if self.tile is not None and self.tile[0] * self.tile[1] * self.tile[2] > self.slots:
            t, h, w = self.tile
            raise ValueError(f"tile {t} x {h} x {w} has {t * h * w} tokens but slots is {self.slots}; raise slots")
        try:
            schedule = self.parsed()
        except ScheduleError as error:
            raise ValueError(f"schedule: {error}") from None
        if self.heads is not None:
            if not schedule.uses_heads:
                raise ValueError(
                    f"heads names {self.heads}, but the schedule never says 'heads'; write it where the table shall be "
                    "used ('0 fp8 x1 heads'), or remove attention.heads"
                )
            try:
                self._table = _given(info) or read_head_table(self.heads)
            except HeadTableError as error:
                raise ValueError(f"heads: {error}") from None
        return self

    @property
    def table(self) -> HeadTable | None:
        """The head table, as it was when the configuration was read; None where the schedule uses none."""
        return self._table if self.parsed().uses_heads else None

    def resolved(self) -> SparseAttention:
        """Return the attention with its schedule parsed and its head table."""
        return SparseAttention(self.parsed(), self.slots, self.tile, self.smooth_k, self.backend, self.table)

    def parsed(self) -> Schedule:
        """Return the schedule; a single word is a preset's name. Raises ScheduleError."""
        text = self.schedule.strip()
        if text and not re.search(r"[\s{\[]", text):
            if text not in PRESETS:
                raise ScheduleError(f"there is no preset '{text}'{_close(text)}; presets: {', '.join(PRESETS)}")
            return preset(text)
        return Schedule.parse(self.schedule)


class OptimSection(Section):
    """The optimizer, its learning-rate curve, and how many samples a step sees."""

    name: Literal["adamw", "adamw-8bit"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=1)] = 5e-6
    betas: Pair = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup: Count = 200
    decay: Literal["constant", "cosine", "plateau"] = "constant"
    final: Share = 0.1
    """Share of lr where cosine ends, and below which plateau does not go."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Positive = 3
    """Validations without a better held-out loss before the rate is cut."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    steps: Positive
    batch: Positive = 1
    """Samples of one forward pass."""
    global_batch: Positive | None = None
    """Samples of one optimizer step over all processes; None: one forward pass of one process."""
    nonfinite_limit: Positive = 5

    @model_validator(mode="after")
    def _consistent(self) -> OptimSection:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}, both must be at least 0 and below 1")
        if self.name == "adamw-8bit" and self.eps < 1e-8:
            raise ValueError(
                f"eps is {self.eps:g} but 8-bit moments need at least 1e-08: small ones are rounded to zero, and an "
                "update is then divided by eps; raise eps, or set name = 'adamw'"
            )
        if self.global_batch is not None and self.global_batch < self.batch:
            raise ValueError(
                f"global_batch is {self.global_batch}, less than batch {self.batch}; it counts the samples of a whole "
                "step over all processes"
            )
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps; make it shorter than steps")
        return self

    @property
    def samples(self) -> int:
        """Samples of one optimizer step."""
        return self.global_batch or self.batch

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay != "cosine":  # a plateau's cuts depend on what is measured, the loop applies them
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
    stratified: bool = False
    """Draw the noise levels of one step from equally likely parts, one each, so that every phase gets its share."""

    def resolved(self) -> Flow:
        """Return the noise-level distribution."""
        return Flow(self.shift, self.sampling, self.mean, self.std)


class LossSection(Section):
    """What the prediction is compared with: the sample's own velocity, a dense teacher's, or a mix of both."""

    teacher: Share = 0.0
    """Weight of the teacher's velocity; the rest is flow matching."""
    teacher_path: Place | None = None
    """The teacher's file; None: the model as it was at the start (with LoRA: the model without it)."""
    weighting: Literal["none", "denoising-factor"] = "none"
    """denoising-factor: a sample weighs as much as its error enters the sampler's next state, 1 on average."""

    @model_validator(mode="after")
    def _consistent(self) -> LossSection:
        if self.teacher_path is not None and not self.teacher:
            raise ValueError("teacher_path is given but teacher is 0; set loss.teacher above 0, or remove teacher_path")
        return self


class RampSection(Section):
    """How sparsity and FP8 set in: windows shrink from everything to the schedule's own over the first steps."""

    steps: Count = 0
    """Steps until the schedule is reached; 0: from the start."""
    stages: Positive = 4
    """In how many jumps; every jump is another set of block lists."""
    fp8_after: Count = 0
    """Steps before which FP8 phases run in bf16."""


class ParallelSection(Section):
    """How a run spreads over processes; the run itself is the same on any number of them."""

    shard: Positive | None = None
    """Processes that share one copy of weights and moments; None: all. Fewer: copies, for example one per node."""
    sequence: Positive = 1
    """Processes that share the tokens of one sample (Ulysses: whole heads in attention)."""
    offload: bool = False
    """Keep weights, gradients and moments in CPU memory and bring one block at a time to the GPU."""


class PreviewSection(Section):
    """Videos sampled while training, through the run's attention and densely from the same seeds."""

    every: Positive = 500
    captions: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)] = ("",)
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (0,)
    steps: Positive = 20
    cfg: Annotated[float, Field(gt=0)] = 5.0
    dense_twin: bool = True


class ValidationSection(Section):
    """The fixed measurement on held-out latents; ``every = 0`` measures at the end only."""

    sigmas: Sigmas = (0.98, 0.93, 0.85, 0.75, 0.6, 0.45, 0.3, 0.15)
    every: Count = 0
    batch: Positive = 4
    seed: Seed = 1234


class CheckpointSection(Section):
    """Where and how often the whole training state is written; ``every = 0`` writes at the end and on a signal only."""

    dir: Place
    every: Count = 500
    keep: Positive = 2
    background: bool = True
    """Write while training goes on; the state is copied first."""


class EmaSection(Section):
    """A running mean of the weights, which is what gets exported and validated."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99


class OutputSection(Section):
    """Where logs, plots and the exported file go, and the export's precision."""

    dir: Place
    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    dtype: Literal["bf16", "fp32", "fp8"] = "bf16"
    """fp8: ComfyUI's own scaled FP8 form for the blocks' linear layers, the rest bf16."""
    tensorboard: bool = False
    report: bool = True
    """Write report.html and report.png when the run ends."""
    dense_run: Place | None = None
    """Output folder of a dense run, drawn beside this one in the report."""


class RunConfig(Section):
    """One training run."""

    seed: Seed = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["fp32", "bf16"] = "fp32"
    threads: Threads | None = None
    activation_checkpointing: Literal["none", "full", "attention"] = "none"
    """What is recomputed in backward: nothing, whole blocks, or all of a block but its attention."""
    compile: bool = False
    """Compile every block with torch.compile."""
    model: ModelSection
    vae: VaeSection
    data: DataConfig
    attention: AttentionSection = AttentionSection()
    optim: OptimSection
    flow: FlowSection = FlowSection()
    loss: LossSection = LossSection()
    ramp: RampSection = RampSection()
    lora: LoraSection | None = None
    talora: TaloraSection | None = None
    fp8_linears: Fp8LinearsSection | None = None
    parallel: ParallelSection = ParallelSection()
    preview: PreviewSection | None = None
    validation: ValidationSection = ValidationSection()
    checkpoint: CheckpointSection
    ema: EmaSection | None = None
    output: OutputSection

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> RunConfig:
        if self.attention.table is None and self.attention.parsed().uses_heads:
            self.attention._table = _given(info) or _carried(self.model)
        one = [name for name in ("lora", "talora", "fp8_linears") if getattr(self, name) is not None]
        if len(one) > 1:
            raise ValueError(f"{one[0]} and {one[1]} exclude each other; remove one of the two sections")
        if self.optim.decay == "plateau" and not self.validation.every:
            raise ValueError("optim.decay is 'plateau' but validation.every is 0; measure every so many steps")
        if self.adapters is not None and self.output.dtype == "fp8":
            raise ValueError("output.dtype is 'fp8' but a LoRA is exported in bf16 or fp32; set one of these")
        return self

    @property
    def adapters(self) -> LoraSection | TaloraSection | None:
        """What is trained beside a frozen model, None where the model itself is."""
        return self.lora if self.lora is not None else self.talora


def _given(info: ValidationInfo) -> HeadTable | None:
    """Return the head table that stands for the file: that of a saved state."""
    return (info.context or {}).get("heads")


def _carried(model: ModelSection) -> HeadTable:
    """Return the head table in the header of the model's file; raises ValueError, one sentence."""
    missing = "attention.schedule says 'heads', but there is no head table; set attention.heads to its JSON file"
    if model.path is None:
        raise ValueError(missing)
    path = Path(model.path)
    try:
        header = read_header(path) if path.is_file() else None
    except HeaderError as error:
        raise ValueError(f"{missing} (model.path: {error})") from None
    if header is None or header.heads is None:
        raise ValueError(f"{missing}, or model.path to a file that carries one ({path.name} does not)")
    return header.heads


def _close(word: str) -> str:
    close = difflib.get_close_matches(word, list(PRESETS), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
