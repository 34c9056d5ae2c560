"""Timestep-aware LoRA (TALoRA): a hub of LoRAs on every adapted layer, of which one acts at a time.

An adapted layer gains ``talora_A`` (hub, rank, in) and ``talora_B`` (hub, out, rank); its output becomes
``base(x) + alpha / rank * B_i A_i x``, x unquantized whatever the base does with it, i what the model's one router
says of the timestep. ``B`` starts as zeros, so training starts at the base. In training every branch is computed, for
the router's straight-through gradient; without gradients only the chosen one is.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..kernels.checkpoint import HeaderError
from ..kernels.timestep_lora import RouteTable, TimestepLora, read_timestep_lora
from .fits import check_targets
from .flow import Flow
from .linear import FrozenLinear, become, linear
from .lora import fill, linear_layers, whole
from .model import WanTransformer3DModel, model_shape
from .names import ModelError
from .router import Router, even_router, straight_through

if TYPE_CHECKING:
    from .layer_settings import TaloraSection

ROUTE_SIGMAS = 64
"""Noise levels at which a run's log says the route."""


class Route:
    """What all adapted layers of a model share: which LoRA acts in this forward, for each sample.

    ``mask`` (B, hub * rank) is the choice with the router's gradient and the scale in it, in training; ``chosen`` the
    indices otherwise. Both stay until the next forward: a recompute in backward reads them again.
    """

    def __init__(self, scale: float, table: RouteTable | None = None) -> None:
        self.scale, self.table = scale, table
        self.on = True
        self.mask: Tensor | None = None
        self.chosen: list[int] = []

    def take(self, router: Router | None, time: Tensor, rank: int) -> None:
        """Choose for the timesteps (B,) of a forward pass that begins."""
        if router is None:
            self.mask, self.chosen = None, [self.table.at(t / 1000) for t in time.double().tolist()]
            return
        logits = router(time)
        if torch.is_grad_enabled() and logits.requires_grad:
            self.mask = (straight_through(logits) * self.scale).float().repeat_interleave(rank, 1)
        else:
            self.mask, self.chosen = None, logits.argmax(1).tolist()


class TaloraLinear(FrozenLinear):
    """A linear layer, quantized or not, with a hub; an existing layer becomes one by having its class set."""

    route: Route

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (B, ..., out_features), with the chosen LoRA's share."""
        out, route = super().forward(x), self.route
        if not route.on:
            return out
        if route.mask is not None:
            low = linear(x, self.talora_A.flatten(0, 1), None)
            mask = route.mask.to(low.dtype).view(len(x), *[1] * (x.ndim - 2), -1)
            return out + linear(low * mask, self.talora_B.transpose(0, 1).flatten(1), None)
        if len(set(route.chosen)) == 1:
            return out + self._one(x, route.chosen[0]) * route.scale
        return out + torch.cat([self._one(x[i : i + 1], k) for i, k in enumerate(route.chosen)]) * route.scale

    def _one(self, x: Tensor, index: int) -> Tensor:
        return linear(linear(x, self.talora_A[index], None), self.talora_B[index], None)

    def extra_repr(self) -> str:
        """Return the layer's numbers, with the hub's."""
        hub, rank, _ = self.talora_A.shape
        return f"{super().extra_repr()}, hub={hub}, rank={rank}, scale={self.route.scale:g}"


def add_talora(model: WanTransformer3DModel, section: TaloraSection, flow: Flow, seed: int) -> None:
    """Freeze the model and give it hubs and a router, all that trains then.

    All are float32 on their layer's device. On 'meta' they have no values: call ``init_talora`` once they do. Call
    this before ``fully_shard``. Raises ConfigError with one sentence for a target that no block has.
    """
    if has_talora(model):
        raise ValueError("the model has hubs already; add them once")
    known = {name: layer for name, (_, layer) in linear_layers(model).items() if name.startswith("blocks.")}
    check_targets(section.targets, {name.split(".", 2)[2] for name in known}, "talora.targets")
    chosen = {name: layer for name, layer in known.items() if name.split(".", 2)[2] in section.targets}
    _adapt(model, chosen, section.hub, section.rank, Route(section.scale))
    device = next(iter(chosen.values())).weight.device
    model.talora_router = Router(section.hub, section.router_width, model_shape(model).freq_dim).to(device)
    init_talora(model, flow, seed)


def _adapt(model: WanTransformer3DModel, layers: Mapping[str, nn.Linear], hub: int, rank: int, route: Route) -> None:
    model.requires_grad_(False)
    for layer in layers.values():
        device = layer.weight.device
        become(layer, TaloraLinear)
        layer.talora_A = nn.Parameter(torch.zeros(hub, rank, layer.in_features, device=device))
        layer.talora_B = nn.Parameter(torch.zeros(hub, layer.out_features, rank, device=device))
        layer.route = route
    model.talora_rank, model.talora_route = rank, route
    model.register_forward_pre_hook(_take_route, with_kwargs=True)


def _take_route(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    time = kwargs["timestep"] if "timestep" in kwargs else args[1]
    model.talora_route.take(getattr(model, "talora_router", None), time, model.talora_rank)


def init_talora(model: nn.Module, flow: Flow, seed: int) -> None:
    """Fill hubs and router, plain or sharded, from the seed and each layer's name; those on 'meta' are left."""
    with torch.no_grad():
        for name, layer in _adapted(model):
            if layer.talora_A.device.type == "meta":
                return
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            bound = 1 / math.sqrt(layer.in_features)
            fill(layer.talora_A, torch.empty(layer.talora_A.shape).uniform_(-bound, bound, generator=generator))
            layer.talora_B.zero_()
        router = model.talora_router
        start = even_router(router.hub, router.first.out_features, router.freq_dim, flow, seed)
        for tensor, value in zip(router.parameters(), start.parameters(), strict=True):
            fill(tensor, value)


def has_talora(model: nn.Module) -> bool:
    """Return whether the model has hubs."""
    return getattr(model, "talora_route", None) is not None


@contextlib.contextmanager
def talora_off(model: nn.Module) -> Iterator[None]:
    """Run the body with the model as it was without hubs; leave it before any backward of the adapted model."""
    route: Route = model.talora_route
    before, route.on = route.on, False
    try:
        yield
    finally:
        route.on = before


def whole_router(model: nn.Module) -> Router:
    """Return a copy of the model's router on the CPU; every process takes part when it is sharded."""
    router = model.talora_router
    copy = Router(router.hub, router.first.out_features, router.freq_dim)
    copy.load_state_dict({name: whole(parameter, None) for name, parameter in router.named_parameters()})
    return copy.requires_grad_(False)


def routes_now(model: nn.Module) -> list[int]:
    """Return which LoRA the router chooses at ``ROUTE_SIGMAS`` noise levels, from 0 to 1; collective if sharded."""
    return whole_router(model).at(torch.linspace(0, 1, ROUTE_SIGMAS, dtype=torch.float64)).tolist()


def talora_state(model: WanTransformer3DModel, dtype: torch.dtype | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return {original name: (A, B)} on the CPU; every process takes part when they are sharded."""
    return {
        original: (whole(layer.talora_A, dtype), whole(layer.talora_B, dtype))
        for original, (_, layer) in linear_layers(model).items()
        if isinstance(layer, TaloraLinear)
    }


def load_timestep_lora(model: WanTransformer3DModel, path: str | Path) -> TimestepLora:
    """Put an exported hub with its table on a model without adapters, for sampling and evaluation; freezes the model.

    Raises ModelError, one sentence, for a file that is none or not for this model.
    """
    try:
        file = read_timestep_lora(path)
        known = {name: layer for name, (_, layer) in linear_layers(model).items()}
        problem = file.misfit({name: (layer.in_features, layer.out_features) for name, layer in known.items()})
        if problem is not None:
            raise ModelError(problem)
        base = getattr(getattr(model, "msfp", None), "fingerprint", "")
        if file.base != base:
            trained, here = (f"the quantized model {b}" if b else "full precision" for b in (file.base, base))
            raise ModelError(f"{file.path.name} was trained on {trained}, this model is {here}; give the one it is for")
        tensors = {layer: (first.float(), second.float()) for layer, first, second in file.tensors()}
    except HeaderError as error:
        raise ModelError(str(error)) from None
    _adapt(model, {name: known[name] for name in tensors}, file.hub, file.rank, Route(file.scale, file.table))
    with torch.no_grad():
        for name, (first, second) in tensors.items():
            known[name].talora_A.copy_(first)
            known[name].talora_B.copy_(second)
    model.requires_grad_(False)
    return file


def _adapted(model: nn.Module) -> Iterator[tuple[str, TaloraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, TaloraLinear):
            yield name, module
