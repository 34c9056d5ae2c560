"""Who takes part when attention is measured on a device: dense attention in several ways, and ours by density.

Everybody gets the same random q, k, v in token order, as a model hands them over; what a contestant does to them on the
way, quantization and another order of tokens included, is part of its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .attention import fps_attention
from .bench.cells import window_for
from .bench.timing import Timing
from .grid import TokenGrid
from .plan import Plans
from .schedule import Schedule

SIGMA = 0.5
# What torch's scaled_dot_product_attention goes by, which needs no second measurement then.
SAME_AS_SDPA = ("torch", "attention_pytorch")

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Size:
    """What is measured: the model's shape on a video, the backend and tile of ours, and the seconds it may take."""

    grid: TokenGrid
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    backend: str = "auto"
    slots: int = 64
    tile: tuple[int, int, int] | None = None
    seconds: float = 20.0

    @property
    def pairs(self) -> float:
        """Query-key pairs of all heads when dense: what the time grows with."""
        return float(self.grid.tokens) ** 2 * self.heads

    @property
    def bytes(self) -> int:
        """Device memory that the measurement may need: inputs, outputs, quantized copies, and the clock's buffer."""
        width = torch.empty((), dtype=self.dtype).element_size()
        return 10 * self.grid.tokens * self.heads * self.head_dim * width + 768 * 2**20


@dataclass
class Row:
    """One contestant: ``family`` is 'dense' or 'ours'; without ``timing`` the ``note`` says why."""

    name: str
    family: str
    density: float
    window: str = ""
    timing: Timing | None = None
    note: str = ""
    starved: bool = False
    call: Callable[[], object] | None = field(default=None, repr=False)
    estimate: float = math.inf
    samples: list[float] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Ours:
    """What runs in place of dense attention: the backend, and the phase that it runs."""

    backend: str
    attention: str
    granularity: str | None


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Return torch's own attention of ``(b, s, heads * d)``: the dense one where there is no host."""
    b, s, _ = q.shape
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.view(b, s, heads, -1).transpose(1, 2) for x in (q, k, v))
    )
    return out.transpose(1, 2).reshape(b, s, -1)


def contestants(size: Size, ours: Ours | None, name: str, host: Attention, percents: tuple[int, ...]) -> list[Row]:
    """Return the rows of ``size``, ready to be called, the most important first; raises what memory raises."""
    shape = (1, size.grid.tokens, size.heads, size.head_dim)
    generator = torch.Generator(size.device).manual_seed(0)
    q, k, v = (torch.randn(shape, generator=generator, device=size.device, dtype=size.dtype) for _ in range(3))
    flat = [x.flatten(2) for x in (q, k, v)]
    calls = {
        name: lambda: host(*flat, size.heads),
        "sdpa": lambda: torch_attention(*flat, size.heads),
        "cudnn": lambda: _cudnn(q, k, v),
    }
    rows = [Row(dense, "dense", 1.0, call=calls[dense]) for dense in _dense_names(size, name)]
    if ours is None:
        return rows
    found: dict[float, Row] = {}
    for percent in percents:
        window = window_for(size.grid.shape, size.slots, percent, size.tile)
        line = f"0.00 {ours.attention} {ours.granularity or '-'} {window.words}"
        plans = Plans(Schedule.parse(line), size.grid, size.heads, slots=size.slots, tile=size.tile)
        density = plans.density(SIGMA)
        if any(abs(density - other) < 1e-6 for other in found):
            continue

        def call(plans: Plans = plans) -> object:
            return fps_attention(q, k, v, plans.at(SIGMA, device=size.device), backend=ours.backend)

        found[density] = Row(ours.backend, "ours", density, window.words, call=call)
    return rows + list(found.values())


def _dense_names(size: Size, host: str) -> list[str]:
    """Return the dense contestants: the host's own, and torch's and cuDNN's, which may be faster."""
    names = [host] if host in SAME_AS_SDPA else [host, "sdpa"]
    half = size.dtype in (torch.float16, torch.bfloat16)
    return [*names, "cudnn"] if size.device.type == "cuda" and half and not torch.version.hip else names


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
