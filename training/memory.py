"""What a run takes of each process's memory, part by part, told without loading anything.

A step has four moments that can be the fullest: the backward of the last block, when most activations are still there;
that of the first, when most gradients already are; the optimizer's step; and, with a teacher, its forward. Each is
the sum of its parts, and the plan is that of the fullest one. What a block keeps is measured (``memory_constants``),
everything else is counted. Bytes that neither the model nor the run determines are assumed, and named as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..kernels.grid import TokenGrid
from .config import RunConfig
from .memory_constants import OUTSIDE, OUTSIDE_PER_TOKEN, ROTARY_PER_TOKEN, TEXT, TEXT_OUTSIDE, BlockCost, block_cost
from .names import HEAD_DIM, WanShape
from .optimizer import BLOCK, SMALL

GIB = 2**30
# Assumed: CUDA's context with the libraries' workspaces, what NCCL takes for its rings, and what torch's allocator
# holds beyond what tensors need (blocks that no later tensor fits).
CONTEXT = int(0.7 * GIB)
COMMUNICATION = int(0.5 * GIB)
FRAGMENTATION = 0.04
# FSDP2 gathers the next block while one runs.
IN_FLIGHT = 2
# Bytes per number of the largest parameter that AdamW with 8-bit moments unpacks for a moment. Compiled, which it is on
# a GPU, it needs none of them; this is the plain form, measured.
UNPACKED = 32
# Selectors whose every call makes lists for every head.
PER_CALL = ("topk", "cdf")
MOMENTS = ("last block's backward", "first block's backward", "optimizer step", "teacher's forward")


@dataclass(frozen=True)
class Plan:
    """Bytes per process. ``gpu`` holds the parts at the fullest moment (of the CPU's memory where it computes);
    ``cpu`` what offloading moved there; ``moments`` the sum at each moment, assumptions included."""

    moment: str
    gpu: Mapping[str, int]
    cpu: Mapping[str, int]
    moments: Mapping[str, int]
    assumed: frozenset[str] = field(default=frozenset(("context", "communication", "allocator")))

    @property
    def total(self) -> int:
        """All of the GPU's parts."""
        return sum(self.gpu.values())

    @property
    def allocated(self) -> int:
        """What torch allocates for tensors: all that is not assumed."""
        return sum(size for name, size in self.gpu.items() if name not in self.assumed)

    @property
    def largest(self) -> str:
        """The name of the GPU's largest part."""
        return max(self.gpu, key=self.gpu.get)


@dataclass(frozen=True)
class _Spread:
    """Who holds what: ``parts`` processes share the weights, ``sequence`` of them a sample's tokens."""

    world: int
    parts: int
    sequence: int
    sharded: bool
    offload: bool


def plan_memory(
    config: RunConfig, shape: WanShape, grid: TokenGrid, *, world: int = 1, cuda: bool = True, text: int | None = None
) -> Plan:
    """Return what every one of ``world`` processes needs for a run of this model on samples of this grid.

    ``cuda`` says what computes: its kernels keep less, and its context takes memory. ``text``: tokens of a text.
    """
    spread = _spread(config, world)
    tokens = math.ceil(grid.tokens / spread.sequence)
    weights = _Weights(config, shape, spread)
    batch = min(config.optim.batch, math.ceil(config.optim.samples / (world // spread.sequence)))
    cost = block_cost(config.dtype, weights.trained, config.activation_checkpointing, cuda and fused_norms())
    step = _Activations(config, shape, cost, tokens, grid, batch, config.data.text_length if text is None else text)
    accumulates = config.optim.samples // (world // spread.sequence) > 1

    steady = weights.steady()
    held = steady if not spread.offload else {}
    moments = {
        MOMENTS[0]: {
            **held,
            **weights.at_work(config.dtype, shape.layers),
            "gradients": weights.gradients if accumulates and not spread.offload else 0,
            **step.parts(shape.layers, cuda),
        },
        MOMENTS[1]: {
            **held,
            **weights.at_work(config.dtype, 1),
            "gradients": 0 if spread.offload else weights.gradients - (0 if accumulates else weights.unmade),
            **step.parts(1, cuda),
        },
        MOMENTS[2]: {
            **held,
            "gradients": 0 if spread.offload else weights.gradients,
            "optimizer's scratch": 0 if spread.offload else weights.scratch,
        },
    }
    if config.loss.teacher:
        moments[MOMENTS[3]] = {
            **held,
            **weights.at_work(config.dtype, 1),
            "gradients": weights.gradients if accumulates and not spread.offload else 0,
            "activations": step.without_gradient(),
        }
    if cuda:
        for parts in moments.values():
            parts["allocator"] = int(FRAGMENTATION * sum(parts.values()))
            parts["communication"] = COMMUNICATION if spread.world > 1 else 0
            parts["context"] = CONTEXT
    sums = {name: sum(parts.values()) for name, parts in moments.items()}
    fullest = max(sums, key=sums.get)
    cpu = {}
    if spread.offload:
        cpu = {**steady, "gradients": weights.gradients, "optimizer's scratch": weights.scratch}
    return Plan(fullest, _present(moments[fullest]), _present(cpu), sums)


def saved_bytes(config: RunConfig, shape: WanShape) -> tuple[int, int]:
    """Return the bytes of a saved training state, over all processes, and the numbers that are trained."""
    weights = _Weights(config, shape, _Spread(1, 1, 1, False, False))
    return 4 * weights.numbers + weights.moments + weights.average, weights.numbers


def copied_bytes(config: RunConfig, shape: WanShape, world: int = 1) -> int:
    """Return the CPU memory of each process that a state takes which is copied to be written in the background."""
    if not config.checkpoint.background:
        return 0
    weights = _Weights(config, shape, _spread(config, world))
    return weights.gradients + weights.moments + weights.average  # what is trained is as large as its gradients


def fused_norms() -> bool:
    """Return True if this torch has the RMS norm that keeps its input only."""
    return hasattr(torch.ops.aten, "_fused_rms_norm")


def _present(parts: Mapping[str, int]) -> dict[str, int]:
    return {name: int(size) for name, size in parts.items() if size}


def _spread(config: RunConfig, world: int) -> _Spread:
    parallel = config.parallel
    sharded = world > 1 or parallel.offload
    return _Spread(world, parallel.shard or world, parallel.sequence, sharded, parallel.offload)


class _Weights:
    """Bytes that follow from the model's size alone."""

    def __init__(self, config: RunConfig, shape: WanShape, spread: _Spread) -> None:
        self.config, self.shape, self.spread = config, shape, spread
        self.trained = "all" if config.adapters is None else "lora"
        self.tensors = shape.tensors()
        adapters = _adapters(config, self.tensors)
        self.halved = config.dtype == "bf16"
        trainable = self.tensors if config.adapters is None else adapters
        self.frozen = {} if config.adapters is None else self.tensors
        self.adapters = adapters
        self.numbers = sum(math.prod(size) for size in trainable.values())
        self.gradients = sum(self._share(size) for size in trainable.values()) * 4
        last = ("blocks.0.", "patch_", "text_", "time_", "img_")
        self.unmade = sum(self._share(size) for name, size in trainable.items() if name.startswith(last)) * 4
        """Gradients that are not there yet when the first block is recomputed: its own, and the embeddings'."""
        self.moments = sum(self._moments(size) for size in trainable.values())
        self.average = self.gradients if config.ema is not None else 0
        largest = max(self._share(size) for size in trainable.values())
        self.scratch = UNPACKED * largest if config.optim.name == "adamw-8bit" else 0

    def _share(self, size: tuple[int, ...]) -> int:
        """Return how many of a tensor's numbers the fullest process holds: rows are dealt out whole."""
        if not self.spread.sharded or not size:
            return math.prod(size)
        return math.ceil(size[0] / self.spread.parts) * math.prod(size[1:])

    def _moments(self, size: tuple[int, ...]) -> int:
        numbers = self._share(size)
        matrix = len(size) == 2 and size[1] % BLOCK == 0 and math.prod(size) >= SMALL
        if self.config.optim.name == "adamw-8bit" and matrix:
            return 2 * numbers + 2 * 4 * math.ceil(numbers / BLOCK)
        return 8 * numbers

    def _base(self, tensors: Mapping[str, tuple[int, ...]], halved: bool) -> int:
        return sum(self._share(size) * self._width(name, size, halved) for name, size in tensors.items())

    @staticmethod
    def _width(name: str, size: tuple[int, ...], halved: bool) -> int:
        """Return the bytes of a number: frozen matrices of the blocks are bf16 where that is what is computed in."""
        return 2 if halved and name.startswith("blocks.") and len(size) == 2 else 4

    def steady(self) -> dict[str, int]:
        """Return what is there all the time: weights, moments, averages, a teacher's copy."""
        frozen = self.trained == "lora"
        parts = {"weights": self._base(self.tensors, frozen and self.halved)}
        if frozen:
            parts["LoRA"] = self._base(self.adapters, False)
        parts["optimizer"] = self.moments
        parts["average"] = self.average
        loss = self.config.loss
        if loss.teacher and (not frozen or loss.teacher_path is not None):
            parts["teacher"] = self._base(self.tensors, self.halved)
        return parts

    def at_work(self, dtype: str, blocks: int) -> dict[str, int]:
        """Return the weights that a computing block needs beside its share: gathered, cast, and gradients on the way.

        ``blocks``: how many blocks' activations are kept; without recomputation each keeps its cast weights.
        """
        frozen = self.trained == "lora"
        block = {name: size for name, size in self.tensors.items() if name.startswith("blocks.0.")}
        rest = sum(math.prod(size) for name, size in self.tensors.items() if not name.startswith("blocks."))
        whole = {**block, **{name: size for name, size in self.adapters.items() if name.startswith("blocks.0.")}}
        gathered = 0
        if self.spread.sharded:
            one = sum(math.prod(s) * self._width(n, s, frozen and self.halved and n in block) for n, s in whole.items())
            gathered = IN_FLIGHT * one + 4 * rest
        trained = [size for name, size in whole.items() if not frozen or name not in block]
        numbers = sum(math.prod(size) for size in trained if len(size) >= 2)
        kept = blocks if self.config.activation_checkpointing == "none" else 1
        cast = 2 * numbers * kept if dtype == "bf16" else 0
        # At the fullest, when a block has been recomputed, the gradient of the one before is still being reduced.
        on_the_way = 4 * sum(math.prod(size) for size in trained)
        if not self.spread.sharded:
            # A plain gradient is at once where it stays; before that, one matrix of it is in bf16.
            on_the_way = 2 * max(math.prod(size) for size in trained) if dtype == "bf16" else 0
        return {"gathered blocks": gathered, "cast weights": cast, "gradients on the way": on_the_way}


def _adapters(config: RunConfig, tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    section = config.adapters
    if section is None:
        return {}
    hub = () if config.talora is None else (config.talora.hub,)
    found = {}
    for name, size in tensors.items():
        target = name.removesuffix(".weight").split(".", 2)[-1]
        if name.startswith("blocks.") and name.endswith(".weight") and target in section.targets:
            found[f"{name}.A"] = (*hub, section.rank, size[1])
            found[f"{name}.B"] = (*hub, size[0], section.rank)
    return found


class _Activations:
    """Bytes that follow from the tokens of a process's forward pass."""

    def __init__(
        self,
        config: RunConfig,
        shape: WanShape,
        cost: BlockCost,
        tokens: int,
        grid: TokenGrid,
        batch: int,
        text: int,
    ) -> None:
        self.config, self.shape, self.cost = config, shape, cost
        self.tokens, self.grid, self.batch, self.text = tokens, grid, batch, text
        self.element = 4 if config.dtype == "fp32" else 2

    def _of(self, pair: tuple[float, float]) -> int:
        per_token = pair[0] * self.shape.dim + pair[1] * self.shape.ffn_dim
        return int(self.batch * self.tokens * per_token)

    def parts(self, blocks: int, cuda: bool) -> dict[str, int]:
        """Return the activations when ``blocks`` blocks are yet to be gone through backwards."""
        d, mode = self.shape.dim, self.config.activation_checkpointing
        whole, text = self.batch * self.grid.tokens, self.batch * self.text * d
        inputs = self.batch * self.tokens * d * self.element
        kept = blocks * self._of(self.cost.kept)
        peak = max(self._of(pair) for pair in self.cost.peaks)
        attention = self._of(self.cost.attention) + self._workspace(cuda)
        named = {}
        if mode == "none":
            # Blocks keep bf16 or float32 copies of a text's keys and values as well.
            named["activations"] = kept + blocks * TEXT[self.config.dtype] * text
            # With everything kept, a block frees more than its own backward takes.
            named["a block's backward"] = max(peak, attention, 0)
        else:
            named["block inputs"] = blocks * inputs
            named["attention kept"] = kept - blocks * inputs
            named["recomputed block"] = max(peak, attention) + TEXT[self.config.dtype] * text
        named["block lists"] = self._lists(blocks if mode == "none" else 1)
        per_dim = OUTSIDE["all" if self.config.adapters is None else "lora"]
        outside = per_dim * d * self.batch * self.tokens + (OUTSIDE_PER_TOKEN + ROTARY_PER_TOKEN) * whole
        named["outside the blocks"] = int(outside + TEXT_OUTSIDE[self.config.dtype] * text)
        return named

    def without_gradient(self) -> int:
        """Return what a forward pass holds that keeps nothing: a block's feed-forward layer, and what comes in."""
        d, f = self.shape.dim, self.shape.ffn_dim
        return int(self.batch * self.tokens * (self.element * (2 * f + 2 * d) + 12 * d))

    def _lists(self, calls: int) -> int:
        """Return what block lists take that are not small: those of a head table, and those made in each of ``calls``
        calls and kept until its backward."""
        attention = self.config.attention.resolved()
        plans = attention.plans(self.grid, self.shape.heads)
        largest = 0
        for phase in attention.schedule.phases:
            if phase.selector is None:
                continue
            pattern = 2 * 4 * plans.tiling(phase.until).count ** 2  # and transposed, whole numbers of 32 bits
            here = self.batch * self.shape.heads * self.tokens / self.grid.tokens
            if phase.selector.split()[0] in PER_CALL:
                largest = max(largest, calls * here * pattern)
            elif phase.uses_heads and attention.table is not None:
                largest = max(largest, len(attention.table.patterns) * pattern)
        return int(largest)

    def _workspace(self, cuda: bool) -> int:
        """Return what the attention's backward takes beside its results: tile copies of Q, K, V and the gradient."""
        attention = self.config.attention.resolved()
        plans = attention.plans(self.grid, self.shape.heads)
        if plans is None:
            return 0
        sigmas = [phase.until for phase in attention.schedule.phases if phase.attention != "dense"]
        padding = max((_padding(plans, sigma) for sigma in sigmas), default=1.0)
        rows = self.batch * self.tokens * padding  # with shared tokens: all tokens of so many fewer heads
        if not cuda:
            # The plain reference: float32 tile copies of q, k, v, the gradient, dk and dv, and a chunk's scores.
            return int(rows * self.shape.dim * 4 * 7)
        return int(rows * (4 * self.shape.dim * self.element + 12 * self.shape.dim / HEAD_DIM))


def _padding(plans, sigma: float) -> float:
    tiles, slots = plans.tiling(sigma).index.shape
    return tiles * slots / plans.grid.tokens
