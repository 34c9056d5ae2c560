"""What a run may do to the model's linear layers: the sections for adapters and for FP8."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .data.settings import Count, Positive, Section, as_tuple


class LoraSection(Section):
    """Low-rank adapters in place of full training; the exported file is a LoRA."""

    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the update times rank; None: equal to rank."""
    targets: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        "self_attn.q",
        "self_attn.k",
        "self_attn.v",
        "self_attn.o",
        "ffn.0",
        "ffn.2",
    )
    """Original names of a block's linear layers."""


class TaloraSection(Section):
    """A hub of low-rank adapters per layer and one router on the timestep (TALoRA); the exported file is the hub."""

    hub: Annotated[int, Field(ge=1, le=16)] = 4
    """LoRAs to choose from; 1 is a single LoRA beside the layer."""
    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the update times rank; None: equal to rank."""
    router_width: Annotated[int, Field(ge=4, le=4096)] = 64
    router_lr: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """The router's learning rate over optim.lr; 0 keeps the even split that it starts from."""
    targets: Annotated[tuple[str, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        "self_attn.q",
        "self_attn.k",
        "self_attn.v",
        "self_attn.o",
        "cross_attn.q",
        "cross_attn.k",
        "cross_attn.v",
        "cross_attn.o",
        "ffn.0",
        "ffn.2",
    )
    """Original names of a block's linear layers."""

    @property
    def scale(self) -> float:
        """What a LoRA's output is multiplied by."""
        return (self.alpha if self.alpha is not None else self.rank) / self.rank


class Fp8LinearsSection(Section):
    """Linear layers of the blocks computed in FP8 (torchao), a switch apart from FP8 attention."""

    recipe: Literal["rowwise", "tensorwise"] = "rowwise"
    skip_first: Count = 1
    skip_last: Count = 1
    """Blocks at either end that stay in full precision."""
