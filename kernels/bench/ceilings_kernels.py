"""The Triton kernel that reads a buffer over and over: what L2 gives to all multiprocessors at once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_repeatedly(source, sums, blocks, rounds, BLOCK: tl.constexpr):
    """Add up ``rounds`` blocks of BLOCK numbers per program, every program starting at another one, into ``sums``."""
    program = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for step in range(rounds):
        block = (program + step * tl.num_programs(0)) % blocks
        # Past the multiprocessor's own cache, as loads into shared memory go.
        total += tl.load(source + block * BLOCK + offsets, cache_modifier=".cg")
    tl.store(sums + program * BLOCK + offsets, total)
