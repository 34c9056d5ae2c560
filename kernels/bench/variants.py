"""Every kernel variant that is checked before a card sees it: a name, the cards it is for, and how to launch it.

A variant goes through the same launchers as a real call, on tensors without data (device ``meta``) of a real shape, so
whatever they decide (blocks, warps, descriptors, formats) is what gets compiled.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..attention import dispatch, make_spec
from ..attention.spec import Spec
from ..grid import TokenGrid
from ..plan import Plans
from ..schedule import Schedule
from .recording import Launch, recording
from .variants_msfp import MsfpVariant, msfp_variants

GRIDS = {
    "720p": TokenGrid(21, 45, 80),  # 1280x720, 81 frames: every tile has the same number of live tokens
    "extra": TokenGrid(21, 45, 80, suffix=48),  # 48 tokens behind the video: only the last tile differs
    "49 frames": TokenGrid(13, 30, 52),  # 832x480: a prime number of frames, so the tiles differ
}
WINDOW = "all 15 20"
DENSE = "all all all"
CARDS = {"fp8": (89, 90, 100, 120), "int8": (80, 86), "bf16": (80, 86, 89, 90, 100, 120)}
HEADS = 40
# Matrix products over the head dimension per score element: Q K and P V in the forward; the backward's dQ adds
# dO V and dS K, its dK and dV recompute Q K and dO V.
PRODUCTS = {"sparse_attention_forward": 2, "backward_queries": 3, "backward_keys": 4}


@dataclass(frozen=True)
class Variant:
    """One call of a backend on a plan.

    ``kind`` is 'fp8', 'int8' or 'bf16'; ``what`` 'forward', 'backward', 'quantize' (for the forward) or 'tiles' (for
    the backward). ``config`` chooses among the forward's candidate configurations by its place in their list.
    """

    name: str
    kind: str
    granularity: str | None = "x1"
    slots: int = 64
    window: str = WINDOW
    dim: int = 128
    grid: str = "720p"
    what: str = "forward"
    config: int = 0
    cards: tuple[int, ...] = ()

    @property
    def backend(self) -> str:
        """The dispatch's name for the kernels."""
        return f"triton-{self.kind}"

    def spec(self) -> Spec:
        """Return what the op would be given."""
        return _spec(self.backend, self.granularity, self.slots, self.window, self.grid)

    def launches(self, capability: int) -> list[Launch]:
        """Return what a card of ``capability`` would be asked to run for this call.

        Attention quantizes first; those kernels belong to the variants 'quantize' and 'tiles'.
        """
        spec = self.spec()
        tokens = GRIDS[self.grid].tokens
        q, k, v = (torch.empty(1, tokens, HEADS, self.dim, dtype=torch.bfloat16, device="meta") for _ in range(3))
        with recording(capability) as launches:
            if self.what == "forward" and self.config:
                config = _candidates(self, capability)[self.config]
                _module("attention.triton_forward").forward(q, k, v, spec, config=config)
            elif self.what == "forward":
                dispatch.run_forward(self.backend, q, k, v, spec)
            elif self.what == "backward":
                stats = torch.empty(1, HEADS, tokens, device="meta")
                rowmax, out, grad = torch.empty_like(stats), torch.empty_like(q), torch.empty_like(q)
                dispatch.run_backward(self.backend, grad, q, k, v, out, stats, rowmax, spec)
            elif self.what == "quantize":
                _module("quantize.triton_quantize").quantize(q, k, v, spec)
            else:
                _module("quantize.triton_quantize").tiles_for_backward(q, k, v, spec, torch.bfloat16)
        package = ".quantize." if self.what in ("quantize", "tiles") else ".attention."
        return [launch for launch in launches if package in launch.kernel.fn.__module__]


def _module(name: str) -> Any:
    return importlib.import_module(f"...{name}", __name__)


def _candidates(variant: Variant, capability: int) -> list[Any]:
    kind = "16" if variant.kind == "bf16" else variant.kind
    spec = variant.spec()
    slots = _module("quantize.triton_quantize").slots_of(spec.index.shape[1], spec.format)
    mask, _ = _module("attention.triton_forward").mask_of(spec, slots)
    token = variant.granularity == "token"
    return _module("attention.configs").candidates(kind, capability, slots, variant.dim, per_token=token, mask=mask)


@lru_cache(maxsize=32)
def _spec(backend: str, granularity: str | None, slots: int, window: str, grid: str) -> Spec:
    phase = f"0.00 {'fp8' if granularity else 'bf16'} {granularity or '-'} {window}"
    plan = Plans(Schedule.parse(phase), GRIDS[grid], HEADS, slots=slots).at(0.5, device="meta")
    return make_spec(plan, plan.lists, backend)


def _forward() -> list[Variant]:
    shapes = {"64": {}, "128": {"slots": 128}, "dense": {"window": DENSE}}
    table = []
    for kind in CARDS:
        for granularity in (None,) if kind == "bf16" else ("x1", "token"):
            stem = " ".join(filter(None, (kind, granularity)))
            table += [Variant(f"{stem} {shape}", kind, granularity, **extra) for shape, extra in shapes.items()]
        table.append(Variant(f"{stem} 64 uneven", kind, granularity, grid="49 frames"))
    table += [
        Variant("fp8 x1 64 extra", "fp8", grid="extra", cards=(89, 90)),
        Variant("fp8 x1 128 extra", "fp8", slots=128, grid="extra", cards=(90,)),
        Variant("fp8 x1 64 D64", "fp8", dim=64, cards=(89, 90)),
        Variant("fp8 x1 dense D64", "fp8", window=DENSE, dim=64, cards=(90,)),
        Variant("int8 x1 64 D64", "int8", dim=64, cards=(80,)),
        Variant("bf16 64 D64", "bf16", None, dim=64, cards=(80, 90)),
    ]
    return table


def _others() -> list[Variant]:
    return [
        Variant("backward fp8 x1 64", "fp8", what="backward"),
        Variant("backward fp8 x1 128", "fp8", slots=128, what="backward"),
        Variant("backward fp8 token 64", "fp8", "token", what="backward"),
        Variant("backward fp8 x1 64 D64", "fp8", dim=64, what="backward", cards=(89, 90)),
        Variant("backward int8 x1 64", "int8", what="backward"),
        Variant("backward bf16 64", "bf16", None, what="backward"),
        Variant("backward bf16 128", "bf16", None, slots=128, what="backward"),
        Variant("quantize fp8 x1 64", "fp8", what="quantize"),
        Variant("quantize fp8 x1 128", "fp8", slots=128, what="quantize"),
        Variant("quantize fp8 x2 64", "fp8", "x2", what="quantize", cards=(89, 90)),
        Variant("quantize fp8 token 64", "fp8", "token", what="quantize"),
        Variant("quantize int8 x1 64", "int8", what="quantize"),
        Variant("tiles fp8 x1 64", "fp8", what="tiles"),
        Variant("tiles fp8 token 64", "fp8", "token", what="tiles", cards=(90,)),
        Variant("tiles bf16 64", "bf16", None, what="tiles"),
    ]


def _tunable(base: list[Variant]) -> list[Variant]:
    """Return the forward's other candidate configurations, by what they are: blocks, pairs, warps, stages."""
    found: dict[str, tuple[Variant, dict[int, int]]] = {}
    for variant in base:
        for card in CARDS[variant.kind]:
            for place, config in enumerate(_candidates(variant, card)):
                if not place:
                    continue
                pairs = " pairs" if config.pairs else ""
                shape = f"{config.block_m}x{config.block_n}{pairs} {config.warps}w{config.stages}s"
                found.setdefault(f"{variant.name} [{shape}]", (variant, {}))[1][card] = place
    table = []
    for name, (variant, places) in found.items():
        for place in sorted(set(places.values())):
            cards = tuple(card for card, its in places.items() if its == place)
            fields = {k: getattr(variant, k) for k in ("kind", "granularity", "slots", "window", "dim", "grid")}
            table.append(Variant(name, config=place, cards=cards, **fields))
    return table


def variants() -> list[Variant | MsfpVariant]:
    """Return every variant; a name occurs twice where cards keep the same configuration in other places."""
    table = _forward() + _others()
    tuned = ("fp8 x1 64", "fp8 x1 128", "fp8 x1 dense", "bf16 128", "int8 x1 128")
    return table + _tunable([v for v in table if v.name in tuned]) + msfp_variants()


def cards_of(variant: Variant | MsfpVariant) -> tuple[int, ...]:
    """Return the compute capabilities that a variant is for."""
    return variant.cards or CARDS[variant.kind]
