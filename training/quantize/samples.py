"""What flows into linear layers while clips are sampled: some tokens of every call, and the extremes of all."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import ConfigError


@dataclass
class InputSamples:
    """Tokens (rows, features) that reached one layer, float32 on the CPU, with the extremes of all numbers."""

    rows: list[Tensor] = field(default_factory=list)
    low: float = float("inf")
    high: float = float("-inf")
    numbers: int = 0
    broken: int = 0

    def add(self, x: Tensor, take: int, generator: torch.Generator) -> None:
        """Look at an input (..., features) and keep ``take`` random tokens of it."""
        x = x.detach().reshape(-1, x.shape[-1])
        low, high = (float(value) for value in torch.aminmax(x))
        self.numbers += x.numel()
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN fails as well
            self.broken += int((~x.isfinite()).sum())
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        chosen = torch.randint(len(x), (min(take, len(x)),), generator=generator)
        self.rows.append(x[chosen.to(x.device)].float().cpu())

    @property
    def tokens(self) -> Tensor:
        """All tokens that were kept, (rows, features)."""
        return torch.cat(self.rows)

    @property
    def constant_channels(self) -> int:
        """Features that had one value in all tokens that were kept."""
        tokens = self.tokens
        return int((tokens == tokens[:1]).all(0).sum())


@contextlib.contextmanager
def watched(layers: Mapping[str, nn.Module], take: int, seed: int = 0) -> Iterator[dict[str, InputSamples]]:
    """Collect the inputs of layers, by name, while the body runs: ``take`` tokens per call of a layer."""
    found = {name: InputSamples() for name in layers}

    def hook(name: str):
        # A layer's tokens do not depend on which other layers are watched.
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name].add(args[0], take, generator)

        return look

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def check_samples(found: Mapping[str, InputSamples]) -> None:
    """Refuse calibration data that are not finite or did not come; raises ConfigError, one sentence."""
    for name, samples in found.items():
        if samples.broken:
            raise ConfigError(
                f"calibration: {samples.broken} of {samples.numbers} numbers that reached {name} are not finite; "
                "the model or its prompts are broken, or bf16 is too narrow for it (--dtype fp32)"
            )
        if not samples.rows:
            raise ConfigError(f"calibration: nothing reached {name}; sample at least one clip")
