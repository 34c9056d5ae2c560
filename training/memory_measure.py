"""What a training step of diffusers' Wan really keeps in memory, measured: where ``training.memory`` has its constants.

Everything runs on fake tensors, which have sizes and no contents, through the trainer's own processors, adapters and
recomputation: the largest model at full length takes a second and no memory. ``Live`` counts real tensors as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..kernels.plan import AttentionPlan
from ..kernels.schedule import Schedule
from .attention import attention_state
from .layer_settings import LoraSection
from .memory_constants import BlockCost
from .model import WanTransformer3DModel, autocast, build, keep_full_precision
from .names import WanShape
from .parallel.recompute import recompute_blocks
from .sparse import SparseAttention, latent_grid

# Between these lie the models that exist: Wan's feed-forward layers are 2.7 to 5.9 times as wide as the rest.
RATIOS = tuple(2.0 + 0.25 * i for i in range(21))
SMALL_GRID, TALL_GRID = (5, 12, 16), (10, 12, 16)
SHAPES = ((1536, 8960), (5120, 13824), (3072, 8960))


class Live(TorchDispatchMode):
    """Counts the bytes of every tensor storage that is made while inside, for as long as it lives.

    ``resizes``: look at every storage after every op, because FSDP2 empties its gathered ones without ending them.
    """

    def __init__(self, *, resizes: bool = False) -> None:
        super().__init__()
        self.resizes = resizes
        self.now = self.peak = 0
        self.trace: list[tuple[str, int]] = []
        self._alive: dict[int, tuple[weakref.ref, int]] = {}

    def add(self, tensors: Iterable[object]) -> None:
        """Count tensors that were there before, or that an op has made."""
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                continue
            if hasattr(tensor, "__tensor_flatten__") and type(tensor) is not nn.Parameter:
                # A packed tensor (8-bit moments) has no storage of its own.
                self.add(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._alive:
                continue
            self.now += storage.nbytes()
            size = storage.nbytes()
            self._alive[key] = (weakref.ref(storage, self._forget(key, size)), size)
        if not self.resizes:
            self.peak = max(self.peak, self.now)

    def recount(self) -> None:
        """Take every storage at the size that it has now."""
        alive = {key: (storage, storage.nbytes()) for key, (ref, _) in self._alive.items() if (storage := ref())}
        self.now = sum(size for _, size in alive.values())
        self.peak = max(self.peak, self.now)
        for key, (storage, size) in alive.items():
            if self._alive[key][1] != size:
                self._alive[key] = (weakref.ref(storage, self._forget(key, size)), size)

    def _forget(self, key: int, size: int):
        def forget(_) -> None:
            self.now -= size
            self._alive.pop(key, None)

        return forget

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        """Run the op and count what it returns."""
        out = op(*args, **(kwargs or {}))
        self.add(tree_leaves(out))
        if self.resizes:
            self.recount()
        self.trace.append((str(op), self.now))
        return out


class _FusedNorm(torch.autograd.Function):
    """An RMS norm that keeps what CUDA's fused one keeps: its input and one number per row."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if weight.requires_grad else None


def fuse_norms(model: nn.Module) -> None:
    """Make the RMS norms of a model on fake tensors keep what CUDA's do; torch's CPU form keeps more."""
    for module in model.modules():
        if isinstance(module, nn.RMSNorm):
            module.forward = lambda x, module=module: _FusedNorm.apply(x.float(), module.weight)
            module._full_precision = True


@dataclass(frozen=True)
class Case:
    """What is measured: a model's size, how much it sees, and how it is trained."""

    dim: int
    ffn_dim: int
    layers: int = 2
    grid: tuple[int, int, int] = SMALL_GRID
    text: int = 512
    batch: int = 1
    dtype: str = "bf16"
    lora: LoraSection | None = None
    recompute: str = "full"
    fused: bool = True
    dense: bool = False


@dataclass
class Step:
    """Bytes beside the weights at moments of one forward and backward pass."""

    weights: int
    kept: int
    """When the forward pass is over."""
    forward_peak: int
    backward_peak: int
    end: int
    """When backward is over: the gradients."""
    trace: list[tuple[str, int]] = field(repr=False)
    """Every op of backward and what was there after it."""


def measure(case: Case) -> Step:
    """Return what one training step of a model on fake tensors holds."""
    plan = None if case.dense else _plan(case)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(WanShape(case.dim, case.ffn_dim, case.layers))
        t, h, w = case.grid
        latent = torch.empty(case.batch, 16, t, 2 * h, 2 * w)
        inputs = (latent, torch.empty(case.batch), torch.empty(case.batch, case.text, 4096))
        if case.lora is not None:
            adapt(model, case.lora, case.dtype)
        if case.fused:
            fuse_norms(model)
        return step(model, inputs, plan, case.dtype, case.recompute)


def adapt(model: WanTransformer3DModel, section: LoraSection, dtype: str) -> None:
    """Give the model adapters as a run does, its own matrices frozen in bfloat16."""
    from .assemble import halve_frozen
    from .lora import add_lora

    add_lora(model, section, 0)
    if dtype == "bf16":
        halve_frozen(model)


def step(
    model: WanTransformer3DModel,
    inputs: Sequence[torch.Tensor],
    plan: AttentionPlan | None,
    dtype: str,
    recompute: str,
) -> Step:
    """Return what one forward and backward of this model holds, on fake or real tensors of the CPU."""
    keep_full_precision(model)
    recompute_blocks(model, recompute)
    attention_state(model)
    for block in model.blocks:
        block.attn1.processor.plan, block.attn1.processor.backend = plan, "reference"
    live = Live()
    with live:
        live.add(model.parameters())
        weights = live.now
        with autocast(torch.device("cpu"), dtype):
            out = model(*inputs, return_dict=False)[0]
        loss = (out.float() - inputs[0][:, :16]).square().mean()
        kept, forward_peak = live.now - weights, live.peak - weights
        live.peak, first = live.now, len(live.trace)
        del out
        loss.backward()
        trace = [(name, size - weights) for name, size in live.trace[first:]]
        return Step(weights, kept, forward_peak, live.peak - weights, live.now - weights, trace)


def _plan(case: Case) -> AttentionPlan:
    t, h, w = case.grid
    attention = SparseAttention(Schedule.parse("0 fp8 x1 all 4 4"), backend="reference")
    plans = attention.plans(latent_grid((16, t, 2 * h, 2 * w)), case.dim // 128)
    return plans.at(0.5, 0, torch.device("cpu"))


def block_cost(dtype: str, lora: LoraSection | None, recompute: str, fused: bool) -> BlockCost:
    """Return a block's bytes per token as multiples of dim and ffn_dim, from runs of three shapes and two lengths."""
    common = {"dtype": dtype, "lora": lora, "recompute": recompute, "fused": fused}
    kept, peaks = [], []
    for dim, ffn_dim in SHAPES:
        # One block more and more tokens: what both add is one block's share of a token.
        runs = {
            (layers, grid): measure(Case(dim, ffn_dim, layers, grid, **common))
            for layers in (1, 2)
            for grid in (SMALL_GRID, TALL_GRID)
        }
        tokens = _tokens(TALL_GRID) - _tokens(SMALL_GRID)
        one, two = (runs[n, TALL_GRID].kept - runs[n, SMALL_GRID].kept for n in (1, 2))
        kept.append((two - one) / tokens)
        # The only block's backward, beyond what the forward pass had left.
        small, tall = runs[1, SMALL_GRID], runs[1, TALL_GRID]
        if len(small.trace) != len(tall.trace):
            raise RuntimeError("two lengths ran different ops; measure with grids that share one plan")
        above = [
            (b - tall.kept - a + small.kept) / tokens for (_, a), (_, b) in zip(small.trace, tall.trace, strict=True)
        ]
        peaks.append([(name, value) for (name, _), value in zip(tall.trace, above, strict=True)])
    fitted = [_fit([row[i][1] for row in peaks]) for i in range(len(peaks[0]))]
    attention = next(i for i, (name, _) in enumerate(peaks[0]) if "fpsattention.backward" in name)
    top = {max(range(len(fitted)), key=lambda i, r=r: fitted[i][0] + r * fitted[i][1]) for r in RATIOS}
    return BlockCost(_fit(kept), tuple(sorted({fitted[i] for i in top})), fitted[attention])


def outside_cost(dtype: str, fused: bool = True, lora: LoraSection | None = None) -> float:
    """Return the bytes per token and channel of dim that lie outside the blocks when the forward pass is over."""
    values = []
    for dim, ffn_dim in SHAPES[:2]:
        kept = [
            measure(Case(dim, ffn_dim, 1, g, dtype=dtype, fused=fused, lora=lora)).kept for g in (SMALL_GRID, TALL_GRID)
        ]
        values.append((kept[1] - kept[0]) / (_tokens(TALL_GRID) - _tokens(SMALL_GRID)))
    element = 4 if dtype == "fp32" else 2
    return (values[1] - values[0]) / (SHAPES[1][0] - SHAPES[0][0]) - element


def _tokens(grid: tuple[int, int, int]) -> int:
    return grid[0] * grid[1] * grid[2]


def _fit(values: Sequence[float]) -> tuple[float, float]:
    """Return (per dim, per ffn_dim) of values at ``SHAPES``, exact but for what depends on neither."""
    rows = torch.tensor([(d, f, 1.0) for d, f in SHAPES], dtype=torch.float64)
    found = torch.linalg.solve(rows, torch.tensor(list(values), dtype=torch.float64))
    return tuple(round(float(x), 2) for x in found[:2])
