"""The Triton kernel of the sparse forward: one source, FP8 or 16-bit by a compile-time switch.

Imports triton, so it is imported only by the launcher, and only when that path is asked for.

One program computes ``BLOCK_M`` query rows of one tile against the key tiles that the tile's list names. The softmax
works in log2 units with a running maximum that is rounded up to an integer: every rescale is then an exact power of
two, and a weight's rounding to e4m3 does not depend on the order of the tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A dead key's score. Finite, because inf - inf is NaN.
DEAD_SCORE = tl.constexpr(-1.0e30)
# The running maximum starts here: far below any score, far above DEAD_SCORE, so that dead keys always weigh 0.
LOWEST_MAX = tl.constexpr(-1.0e20)
# FP8 weights are 2**8 times larger, which moves (0, 1] into e4m3's range; the factor leaves through the row's sum.
FP8_SHIFT = tl.constexpr(8.0)

# Plain counts: compiling again whenever one of them becomes a multiple of 16 would gain nothing.
_UNSPECIALIZED = ["scale_log2", "heads", "tokens", "tiles", "index_width", "ids_width", "pattern_batch"]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def sparse_attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    q_scale_ptr,
    k_scale_ptr,
    v_scale_ptr,
    out_ptr,
    lse_ptr,
    rowmax_ptr,
    index_ptr,
    live_ptr,
    ids_ptr,
    count_ptr,
    pattern_ptr,
    scale_log2,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    v_col,
    heads,
    tokens,
    tiles,
    index_width,
    ids_width,
    pattern_batch,
    FP8: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr,
    STATS: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write ``out (B, S, H, D)`` and, with STATS, ``lse`` and ``rowmax (B, H, S)``, all in token order.

    16-bit: q, k, v are in token order and rows are gathered through ``index``. FP8: they are in tile order, ``SLOTS``
    rows per tile, v transposed (``v_row`` 1); scales hold one value per row or per tile, and one per channel of v.
    Offsets that can pass 2**31 are 64-bit. Live rows come first in a tile, so ``row < live`` tells dead ones.
    """
    Q_BLOCKS: tl.constexpr = SLOTS // BLOCK_M
    K_BLOCKS: tl.constexpr = SLOTS // BLOCK_N
    SHIFT: tl.constexpr = FP8_SHIFT if FP8 else 0.0

    q_tile = tl.program_id(0) // Q_BLOCKS
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    batch_head = tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, D)
    k_slots = tl.arange(0, BLOCK_N)

    # Queries: their rows in q, their tokens in the output.
    q_slots = (tl.program_id(0) % Q_BLOCKS) * BLOCK_M + tl.arange(0, BLOCK_M)
    q_live = q_slots < tl.load(live_ptr + q_tile)
    q_tokens = tl.load(index_ptr + q_tile * index_width + q_slots, mask=q_live, other=0).to(tl.int64)
    q_rows = q_tile.to(tl.int64) * SLOTS + q_slots if FP8 else q_tokens
    q_base = q_ptr + batch * q_batch + head * q_head
    q = tl.load(q_base + q_rows[:, None] * q_row + channels[None, :], mask=q_live[:, None], other=0.0)
    if FP8 and SCALE_PER_TOKEN:
        q_factor = tl.load(q_scale_ptr + batch_head * tiles * SLOTS + q_rows)[:, None] * scale_log2
    elif FP8:
        q_factor = tl.load(q_scale_ptr + batch_head * tiles + q_tile) * scale_log2
    else:
        q_factor = scale_log2

    # The list of this tile under this head's pattern.
    pattern = tl.load(pattern_ptr + batch * pattern_batch + head).to(tl.int64)
    count = tl.load(count_ptr + pattern * tiles + q_tile)
    list_ptr = ids_ptr + (pattern * tiles + q_tile) * ids_width

    k_base = k_ptr + batch * k_batch + head * k_head
    v_base = v_ptr + batch * v_batch + head * v_head
    row_max = tl.full([BLOCK_M], LOWEST_MAX, tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)

    for step in range(0, count * K_BLOCKS):
        k_tile = tl.load(list_ptr + step // K_BLOCKS)
        k_first = (step % K_BLOCKS) * BLOCK_N
        k_live = k_first + k_slots < tl.load(live_ptr + k_tile)
        if FP8:
            # Consecutive rows, the dead ones zero: one 64-bit base, no masks.
            first_row = k_tile.to(tl.int64) * SLOTS + k_first
            k = tl.load(k_base + first_row * k_row + (k_slots[None, :] * k_row + channels[:, None]))
            v = tl.load(v_base + first_row * v_row + (k_slots[:, None] * v_row + channels[None, :] * v_col))
        else:
            index_offsets = k_tile * index_width + k_first + k_slots
            k_tokens = tl.load(index_ptr + index_offsets, mask=k_live, other=0).to(tl.int64)
            k_offsets = k_tokens[None, :] * k_row + channels[:, None]
            v_offsets = k_tokens[:, None] * v_row + channels[None, :] * v_col
            k = tl.load(k_base + k_offsets, mask=k_live[None, :], other=0.0)
            v = tl.load(v_base + v_offsets, mask=k_live[:, None], other=0.0)

        scores = tl.dot(q, k)
        if FP8 and SCALE_PER_TOKEN:
            k_factor = tl.load(k_scale_ptr + batch_head * tiles * SLOTS + first_row + k_slots)
            scores = scores * q_factor * k_factor[None, :]
        elif FP8:
            scores = scores * (q_factor * tl.load(k_scale_ptr + batch_head * tiles + k_tile))
        else:
            scores = scores * q_factor
        scores = tl.where(k_live[None, :], scores, DEAD_SCORE)

        new_max = tl.maximum(row_max, tl.ceil(tl.max(scores, 1)))
        rescale = tl.exp2(row_max - new_max)
        weights = tl.exp2(scores - (new_max - SHIFT)[:, None])
        rounded = weights.to(v_ptr.dtype.element_ty)
        # In FP8 a row is divided by the sum of what the product really used, so its weights still add up to one.
        row_sum = row_sum * rescale + tl.sum(rounded.to(tl.float32) if FP8 else weights, 1)
        # A dot of its own, never one that accumulates into acc: the tensor core's FP8 accumulator drops low bits.
        acc = acc * rescale[:, None] + tl.dot(rounded, v)
        row_max = new_max

    # An empty list (or one of dead tiles only) leaves the sum at 0: the output is 0, the LSE -inf.
    empty = row_sum == 0.0
    row_sum = tl.where(empty, 1.0, row_sum)
    out = acc / row_sum[:, None]
    if FP8:
        out = out * tl.load(v_scale_ptr + batch_head * D + channels)[None, :]
    out_rows = (batch * tokens + q_tokens) * heads + head
    out_offsets = out_rows[:, None] * D + channels[None, :]
    tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=q_live[:, None])
    if STATS:
        stats_offsets = batch_head * tokens + q_tokens
        lse = tl.where(empty, float("-inf"), row_max - SHIFT + tl.log2(row_sum))
        tl.store(lse_ptr + stats_offsets, lse, mask=q_live)
        tl.store(rowmax_ptr + stats_offsets, tl.where(empty, 0.0, row_max), mask=q_live)
