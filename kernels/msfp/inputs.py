"""What a linear layer does to its input before the product: rounding to a low-bit format, as it was trained with.

Static: scale and zero point are numbers found on calibration data, one per layer. Dynamic: they follow every token's
own range. Mixup-sign is this choice of a signed format, or an unsigned one with a zero point, per layer (MSFP,
arXiv 2505.21591, section 3): an input that is hardly negative wastes half the codes of a signed format.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .formats import FloatFormat, FormatError
from .rounding import fake_quantize

STATIC, DYNAMIC = "static", "dynamic"
# Scales and products with them stay numbers in float32.
SMALLEST, LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class InputQuantizer:
    """``maxval`` is the largest magnitude above ``zero``: static in the input's own units, dynamic as a share of each
    token's range (1 clips nothing). ``zero`` is for unsigned formats: static the least value that is kept, dynamic
    always the token's least value, and 0 here."""

    form: FloatFormat
    mode: str
    maxval: float
    zero: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in (STATIC, DYNAMIC):
            raise FormatError(f"an input's mode is {str(self.mode)[:40]!r}; it is '{STATIC}' or '{DYNAMIC}'")
        for name, value, least in (("maxval", self.maxval, SMALLEST), ("zero", self.zero, -LARGEST)):
            if not least <= value <= LARGEST:
                raise FormatError(f"an input's {name} is {value:g}; it must be a number of {least:g} to {LARGEST:g}")
        if self.zero and (self.form.signed or self.mode == DYNAMIC):
            raise FormatError(
                f"an input has the zero point {self.zero:g}, which only static unsigned formats have, not "
                f"{self.mode} {self.form.name}"
            )

    @property
    def text(self) -> str:
        """The quantizer in words, for reports."""
        if self.mode == DYNAMIC:
            return f"{self.form.name} dynamic {self.maxval:g}"
        low = -self.maxval if self.form.signed else self.zero
        return f"{self.form.name} [{low:.4g}, {self.zero + self.maxval:.4g}]"

    def ranges(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero point, float32 and broadcast to ``x (..., features)``."""
        # By a tensor: on a card, a division by a number multiplies by its reciprocal, and rounds differently.
        top = _full(self.form.top, x.device)
        if self.mode == STATIC:
            return _full(self.maxval, x.device) / top, None if self.form.signed else _full(self.zero, x.device)
        x = x.detach().float()
        if self.form.signed:
            return x.abs().amax(-1, keepdim=True) * self.maxval / top, None
        low = x.amin(-1, keepdim=True)
        return (x.amax(-1, keepdim=True) - low) * self.maxval / top, low

    def reference(self, x: Tensor) -> Tensor:
        """Return ``x (..., features)`` rounded, in its own dtype. Plain torch."""
        return fake_quantize(x, self.form, *self.ranges(x))

    def to_dict(self) -> dict[str, Any]:
        """Return what a file keeps; ``from_dict`` gives the quantizer back."""
        found: dict[str, Any] = {"format": self.form.name, "mode": self.mode, "maxval": self.maxval}
        return found if self.form.signed or self.mode == DYNAMIC else {**found, "zero": self.zero}

    @staticmethod
    def from_dict(values: Any) -> InputQuantizer:
        """Return the quantizer of a file. Raises FormatError, one sentence."""
        if not isinstance(values, dict):
            raise FormatError(f"an input quantizer is {str(values)[:40]!r}; it must be a table")
        unknown = values.keys() - {"format", "mode", "maxval", "zero"}
        if unknown:
            raise FormatError(f"an input quantizer has {min(unknown)!r}, which this version does not know")
        numbers = {key: values.get(key, default) for key, default in (("maxval", None), ("zero", 0.0))}
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
                raise FormatError(f"an input's {key} is {str(value)[:40]!r}, not a number")
        form, mode = FloatFormat.parse(values.get("format")), values.get("mode")
        if not form.signed and mode == STATIC and "zero" not in values:
            raise FormatError(f"an input in {form.name} has no zero point, which a static unsigned format needs")
        return InputQuantizer(form, mode, float(numbers["maxval"]), float(numbers["zero"]))


def _full(number: float, device: torch.device) -> Tensor:
    return torch.full((1,), number, dtype=torch.float32, device=device)
