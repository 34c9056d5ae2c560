"""A weight matrix in a low-bit format: which scales it has, its packed codes, and the values they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .formats import FloatFormat, FormatError
from .packing import pack, packed_width, unpack
from .rounding import decode, encode

TENSOR, CHANNEL = "tensor", "channel"
LEAST_GROUP = 8


@dataclass(frozen=True)
class WeightFormat:
    """A format and what shares a scale: the whole ``tensor``, an output ``channel`` (a row), or a group of so many
    neighbors in a row."""

    form: FloatFormat
    granularity: str | int = CHANNEL

    def __post_init__(self) -> None:
        group = self.granularity
        known = group in (TENSOR, CHANNEL) if isinstance(group, str) else type(group) is int and group >= LEAST_GROUP
        if not known:
            raise FormatError(
                f"granularity is {str(group)[:40]!r}; it is '{TENSOR}', '{CHANNEL}', or a group's size, at least "
                f"{LEAST_GROUP}"
            )

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the shape of the scales of a matrix. Raises FormatError for a group that does not divide a row."""
        if self.granularity == TENSOR:
            return 1, 1
        if self.granularity == CHANNEL:
            return rows, 1
        if columns % self.granularity:
            raise FormatError(
                f"a row of {columns} numbers does not divide into groups of {self.granularity}; choose another group"
            )
        return rows, columns // self.granularity

    def bits(self, rows: int, columns: int, scale_bits: int = 32) -> float:
        """Return the bits per number of a matrix, scales and zero points included."""
        scales = self.scale_shape(rows, columns)
        return self.form.bits + (1 if self.form.signed else 2) * scale_bits * scales[0] * scales[1] / (rows * columns)


@dataclass(frozen=True)
class PackedWeight:
    """A matrix (rows, columns): ``codes`` (rows, packed_width) uint8, ``scale`` and, for unsigned formats, ``zero``
    (float32 or narrower, of ``WeightFormat.scale_shape``)."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    format: WeightFormat
    columns: int

    def __post_init__(self) -> None:
        form, rows = self.format.form, self.codes.shape[0] if self.codes.ndim == 2 else 0
        width = packed_width(self.columns, form.bits)
        if self.codes.dtype != torch.uint8 or tuple(self.codes.shape) != (rows, width):
            raise FormatError(
                f"codes are {self.codes.dtype} {tuple(self.codes.shape)}, those of {self.columns} columns in "
                f"{form.name} are uint8 with {width} to a row"
            )
        wanted = self.format.scale_shape(rows, self.columns)
        if tuple(self.scale.shape) != wanted:
            raise FormatError(f"scales have shape {tuple(self.scale.shape)}, they must have {wanted}")
        if (self.zero is None) != form.signed:
            raise FormatError(
                f"{form.name} is {'signed and has no' if form.signed else 'unsigned and needs a'} zero point"
            )
        if self.zero is not None and self.zero.shape != self.scale.shape:
            raise FormatError(f"zero points have shape {tuple(self.zero.shape)}, they must have {wanted}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.codes.shape[0], self.columns

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scale, self.zero) if t is not None)

    def to(self, device: torch.device | str) -> PackedWeight:
        """Return the weight on a device."""
        zero = None if self.zero is None else self.zero.to(device)
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device), zero=zero)


def quantize_weight(weight: Tensor, form: WeightFormat, scale: Tensor, zero: Tensor | None = None) -> PackedWeight:
    """Return ``weight (rows, columns)`` packed, with given scales and zero points of ``form.scale_shape``."""
    rows, columns = weight.shape
    grouped, wide = _grouped(weight.float(), scale), scale.float()[..., None]
    codes = encode(grouped, form.form, wide, None if zero is None else zero.float()[..., None])
    return PackedWeight(pack(codes.reshape(rows, columns), form.form.bits), scale, zero, form, columns)


def dequantize_reference(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values (rows, columns) of a packed weight: float32 products, rounded once to ``dtype``."""
    codes = unpack(weight.codes, weight.format.form.bits)
    scale = weight.scale.float()[..., None]
    zero = None if weight.zero is None else weight.zero.float()[..., None]
    return decode(_grouped(codes, weight.scale), weight.format.form, scale, zero, dtype).reshape(codes.shape)


def _grouped(x: Tensor, scale: Tensor) -> Tensor:
    """Return (rows, groups, numbers of a group), a view whose scales are ``scale[..., None]``."""
    return x.reshape(x.shape[0], scale.shape[1], -1)
