"""Block sizes of the forward: one shipped default per card, kind and tile size, and the alternatives to measure.

Nothing is tuned while a user waits: a first run compiles one variant per phase, and later ones find it in Triton's
cache. ``python -m kernels.benchmark --tune`` times the candidates on a card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache


@dataclass(frozen=True)
class Config:
    """How a forward is launched: rows and keys per step, two key blocks per softmax step or one, warps, stages of the
    pipelined loop, tensor descriptors or pointers, row sums by the tensor core or by additions, and the most registers
    that a thread may take (None: the compiler decides). ``apart``: see the kernel's APART."""

    block_m: int
    block_n: int
    pairs: bool
    warps: int
    stages: int
    descriptors: bool
    sum_by_mma: bool
    registers: int | None = None
    apart: int | None = None

    @property
    def odd_tile_first(self) -> bool:
        """True if a last tile that differs is computed in front of the loop. Where products read registers, the second
        body costs more of them than the masks that it saves, and every tile is masked by its count instead. (16-bit on
        Hopper would have room for it, and follows the same rule as on the others.)"""
        return self.descriptors


# With more registers than this, only two programs of four warps fit on a multiprocessor. On Hopper the compilers of
# these versions of Triton keep to it without spilling; others need not (3.5 and 3.9 spill), and are left to choose.
THREE_PROGRAMS = 168
KEEPS_TO_IT = ("3.6", "3.7")


@cache
def _three_programs() -> int | None:
    """Return the limit on registers, None where Triton's compiler might spill to meet it."""
    try:
        from triton import __version__
    except Exception:  # without triton nothing is launched
        return THREE_PROGRAMS
    return THREE_PROGRAMS if ".".join(__version__.split(".")[:2]) in KEEPS_TO_IT else None


def default(
    kind: str, capability: int, slots: int, dim: int, *, per_token: bool = False, mask: str = "constant"
) -> Config:
    """Return the shipped configuration of ``kind`` ('fp8', 'int8', '16') for tiles of ``slots`` rows.

    ``per_token`` and ``mask`` (the kernel's MASK) decide only whether a limit on registers is met without spills.
    """
    return candidates(kind, capability, slots, dim, per_token=per_token, mask=mask)[0]


def candidates(
    kind: str, capability: int, slots: int, dim: int, *, per_token: bool = False, mask: str = "constant"
) -> list[Config]:
    """Return the configurations worth timing, the shipped one first; at most six."""
    if kind == "fp8" and capability // 10 == 9:
        # Programs of 64 rows leave room for three on a multiprocessor, and one's exponentials then run while another's
        # products do. 128 rows halve the traffic from L2.
        limit = None
        if (mask == "constant" and not (per_token and slots < 128)) or (mask == "last" and per_token):
            limit = _three_programs()
        small = Config(min(slots, 64), min(slots, 128), slots < 128, 4, 2, True, True, limit)
        if slots < 128:
            single = replace(small, pairs=False, stages=3, registers=None)
            return [small, replace(small, stages=3, registers=None), single]
        large = replace(small, block_m=128, warps=8, registers=None)
        return [small, large, replace(small, stages=3, registers=None), replace(large, stages=3)]
    if capability // 10 == 10:
        base = Config(
            min(slots, 128), min(slots, 128 if kind == "fp8" else 64), False, 8 if slots >= 128 else 4, 2, False, False
        )
        if kind != "fp8":
            return [base]
        base = replace(base, descriptors=True, sum_by_mma=True)
        return [base, replace(base, stages=3)]
    if capability // 10 == 9:
        base = Config(min(slots, 128), min(slots, 64), False, 8 if slots >= 128 else 4, 2, False, False)
        return [base, replace(base, block_n=128)] if slots >= 128 else [base]
    # Products that read registers (before Hopper, and on consumer Blackwell). There the compiler folds a product and
    # the addition behind it into one that accumulates, which for FP8 drops low bits of the running sum: they are kept
    # apart by asking for a full sum after every 32 products. Datacenter Blackwell accumulates in float32.
    apart = 32 if kind == "fp8" else None
    if slots >= 128:
        return [Config(128, 32 if kind == "16" and capability == 80 else 64, False, 8, 2, False, False, apart=apart)]
    if kind == "16":
        return [Config(slots, min(slots, 32), False, 8 if slots == 64 else 4, 2, False, False, THREE_PROGRAMS)]
    return [Config(slots, slots, False, 4, 2, False, False, THREE_PROGRAMS if dim < 128 else None, apart)]
