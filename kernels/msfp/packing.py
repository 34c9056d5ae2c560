"""Codes of 4, 6 and 8 bits in bytes: rows of a matrix, each row for itself, lowest bits first.

4 bits: two codes a byte, the first in the low half. 6 bits: four codes in three bytes, as one little-endian number.
8 bits: the codes themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import BITS, FormatError

# Codes that share a whole number of bytes, and how many bytes.
UNIT = {4: (2, 1), 6: (4, 3), 8: (1, 1)}


def packed_width(columns: int, bits: int) -> int:
    """Return the bytes of a row of ``columns`` codes. Raises FormatError if the row does not end with a byte."""
    if bits not in BITS:
        raise FormatError(f"codes of {bits} bits cannot be packed; they have {', '.join(map(str, BITS))}")
    codes, size = UNIT[bits]
    if columns % codes:
        raise FormatError(f"a row of {columns} codes of {bits} bits does not fill its bytes; it must divide by {codes}")
    return columns // codes * size


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return bytes (rows, packed_width) of ``codes (rows, columns)``, uint8 below 2^bits."""
    packed_width(codes.shape[-1], bits)
    if bits == 8:
        return codes
    if bits == 4:
        return codes[..., 0::2] | (codes[..., 1::2] << 4)
    a, b, c, d = (codes[..., i::4] for i in range(4))
    three = torch.stack([a | (b << 6), (b >> 2) | (c << 4), (c >> 4) | (d << 2)], -1)
    return three.flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes (rows, columns) of ``packed`` rows."""
    if bits == 8:
        return packed
    if bits == 4:
        return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    x, y, z = (packed[..., i::3] for i in range(3))
    four = torch.stack([x & 63, (x >> 6) | ((y & 15) << 2), (y >> 4) | ((z & 3) << 4), z >> 2], -1)
    return four.flatten(-2)
