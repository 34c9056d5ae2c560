"""Floating-point formats of a few bits: signed ExMy and unsigned ExMy, every code finite, subnormals included.

A magnitude is a whole number of *steps*, the spacing of the subnormals; a real-valued scale (the paper's bias, or
maxval: the largest magnitude is ``top`` steps) is one step's size. With exponent field p and mantissa field m,

    steps = m                           for p = 0 (subnormal)
    steps = (2^y + m) * 2^(p - 1)       for p > 0

which is ``2^(p - b) (1 + m / 2^y)`` of MSFP (arXiv 2505.21591, section 3) with ``b`` absorbed by the scale. Codes are
ordered as their magnitudes; a sign, where there is one, is the top bit. ``e0m3`` is symmetric INT4 (-7 .. 7), and so is
``e1m2``, whose only exponent step changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

BITS = (4, 6, 8)
_NAME = re.compile(r"(u?)e([0-9])m([0-9])(fn)?")


class FormatError(ValueError):
    """A format that does not exist; the message is one sentence."""


@dataclass(frozen=True, order=True)
class FloatFormat:
    """``exponent`` and ``mantissa`` bits, a sign or none; ``reserved`` codes at the top are no numbers.

    The hardware's e4m3fn reserves one, for NaN. Every other format here uses all codes.
    """

    exponent: int
    mantissa: int
    signed: bool = True
    reserved: int = 0

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.exponent < 0 or self.mantissa < 0:
            raise FormatError(
                f"{self.name} has {self.bits} bits; formats have {', '.join(map(str, BITS))}, as e2m1 or ue2m2"
            )
        # Beyond e5, a magnitude of 8 bits leaves what float32 holds in whole steps.
        if self.exponent > 5:
            raise FormatError(f"{self.name} has {self.exponent} exponent bits; at most 5 are supported")

    @staticmethod
    def parse(name: object) -> FloatFormat:
        """Return the format of a name: ``e2m1`` signed, ``ue2m2`` unsigned, ``e4m3fn``. Raises FormatError."""
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise FormatError(f"{str(name)[:40]!r} is no format; write it as e2m1 (signed) or ue2m2 (unsigned)")
        unsigned, exponent, mantissa, hardware = match.groups()
        found = FloatFormat(int(exponent), int(mantissa), not unsigned, 1 if hardware else 0)
        if hardware and found != E4M3FN:
            raise FormatError(f"{name!r} is no format; the only one with reserved codes is e4m3fn")
        return found

    @property
    def name(self) -> str:
        """The name that ``parse`` takes."""
        return f"{'' if self.signed else 'u'}e{self.exponent}m{self.mantissa}{'fn' if self.reserved else ''}"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.signed + self.exponent + self.mantissa

    @cached_property
    def magnitudes(self) -> tuple[int, ...]:
        """The magnitude of every code without its sign bit, in steps, ascending."""
        count = (1 << (self.exponent + self.mantissa)) - self.reserved
        return tuple(self.steps(code) for code in range(count))

    @property  # not cached: compilers do not enter the lock of Python 3.11's cached_property
    def top(self) -> int:
        """The largest magnitude in steps: maxval over the scale."""
        return self.steps((1 << (self.exponent + self.mantissa)) - self.reserved - 1)

    @property
    def values(self) -> tuple[int, ...]:
        """The values of all codes in steps: magnitudes ascending, then their negatives; minus zero is 0."""
        return self.magnitudes + tuple(-steps for steps in self.magnitudes) if self.signed else self.magnitudes

    def steps(self, code: int) -> int:
        """Return the magnitude of a code without its sign bit, in steps, a reserved one taken as a number."""
        p, m = code >> self.mantissa, code & ((1 << self.mantissa) - 1)
        return m if p == 0 else ((1 << self.mantissa) + m) << (p - 1)


E2M1 = FloatFormat(2, 1)
E4M3FN = FloatFormat(4, 3, True, 1)
INT4 = FloatFormat(0, 3)


def candidates(bits: int, signed: bool) -> tuple[FloatFormat, ...]:
    """Return the formats that a search tries: every split of the bits with at least one exponent bit.

    4 bits: signed e1m2, e2m1, e3m0; unsigned e1m3, e2m2, e3m1, e4m0. Splits of more than 4 exponent bits reach over
    more octaves than any tensor of a network has, and are left out. Raises FormatError for other bits.
    """
    if bits not in BITS:
        raise FormatError(f"there are no formats of {bits} bits; choose {', '.join(map(str, BITS))}")
    free = bits - signed
    return tuple(FloatFormat(e, free - e, signed) for e in range(1, min(4, free) + 1))
