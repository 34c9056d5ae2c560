"""A running mean of the trained weights, which is what gets validated and exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Ema:
    """The mean of a model's trainable parameters, ``tensors[name] = decay * tensors[name] + (1 - decay) * weight``.

    Parameters may be plain or sharded (DTensor); each process averages its own shard. Frozen parameters and buffers
    do not change, so they have no average. ``device`` places the averages elsewhere, for example on 'cpu'.
    """

    def __init__(self, model: nn.Module, decay: float, device: str | torch.device | None = None) -> None:
        _reshard(model)
        self.decay = decay
        self._model = model
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: _copy(p, device) for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights of now; call it after an optimizer step that took place."""
        for name, parameter in self._parameters.items():
            average = _local(self.tensors[name])
            average.lerp_(_local(parameter).to(average.device, average.dtype), 1 - self.decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Run the body with the averages in the model, and put the trained weights back afterwards, whatever happens.

        Values change places tensor by tensor, so one tensor's memory is all that this takes; while the body runs,
        ``tensors`` holds the trained weights. Do not call ``update`` or save inside.
        """
        done: list[str] = []
        _reshard(self._model)
        try:
            for name in self._parameters:
                self._exchange(name)
                done.append(name)
            yield
        finally:
            _reshard(self._model)
            for name in done:
                self._exchange(name)

    @torch.no_grad()
    def keep(self) -> None:
        """Leave the averages in the model for good; the trained weights are gone."""
        _reshard(self._model)
        for name, parameter in self._parameters.items():
            _local(parameter).copy_(_local(self.tensors[name]))

    @torch.no_grad()
    def _exchange(self, name: str) -> None:
        # In place: compiled graphs and FSDP's own buffers go on pointing at the same memory.
        weight, average = _local(self._parameters[name]), _local(self.tensors[name])
        held = weight.clone()
        weight.copy_(average)
        average.copy_(held)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _copy(parameter: torch.Tensor, device: str | torch.device | None) -> torch.Tensor:
    copy = parameter.detach().clone()
    return copy if device is None else copy.to(device)


def _reshard(model: nn.Module) -> None:
    # After a forward pass without backward FSDP2 keeps the root's gathered weights and would compute with them even
    # though the shards have changed.
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()
