"""The Triton kernel of the sparse forward: one source; FP8, INT8 or 16-bit by a compile-time switch.

Imports triton, so it is imported only by the launcher, and only when that path is asked for.

One program computes ``BLOCK_M`` query rows of one tile against the key tiles that the tile's list names. The softmax
works in log2 units with a running maximum that is rounded up to an integer: every rescale is then an exact power of
two, and a weight's rounding to e4m3 does not depend on the order of the tiles.

Instructions per score bound this kernel as much as the tensor core does, so the inner loop holds only what it must:

- the maximum is taken of raw scores, and scale and shift are one multiply-add in front of the exponential;
- a row's sum comes from the tensor core, as a product of the rounded weights with ones (``SUM_BY_MMA``): no conversion
  back, no additions, and it drops the same low bits as the product that it divides;
- the FP8 weights go to the second product as the first one left them in registers. That product reads its rows in
  another order inside every 16 keys; relabeling the columns costs nothing, and V is stored in that order;
- dead keys are masked by a constant where all tiles have the same number of live rows, in the last tile alone where
  only that one is short, and by a loaded count otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A dead key's score. Finite, because inf - inf is NaN; the lowest even under the smallest product of scales.
DEAD_SCORE = tl.constexpr(-3.0e38)
# The running maximum starts here: far below any score, far above DEAD_SCORE, so that dead keys always weigh 0.
LOWEST_MAX = tl.constexpr(-1.0e20)
# FP8 weights are 2**8 times larger, which moves (0, 1] into e4m3's range; the factor leaves through the row's sum.
FP8_SHIFT = tl.constexpr(8.0)
# As float bits: 1.5 * 2**23. An integer below 2**22 added to them is the float 1.5 * 2**23 + integer: a conversion
# without a conversion instruction. 128 products of 8-bit codes stay below 2**21.
INT_AS_FLOAT = tl.constexpr(0x4B400000)
INT_OFFSET = tl.constexpr(12582912.0)
# Columns of the product with ones: the fewest that every tensor core takes.
SUM_COLUMNS = tl.constexpr(16)

# Plain counts: compiling again whenever one of them becomes a multiple of 16 would gain nothing.
_UNSPECIALIZED = ["scale_log2", "heads", "tokens", "tiles", "index_width", "ids_width", "patterns", "pattern_batch"]


@triton.jit
def _clamp(x, n):
    """Return ``x`` moved into 0 .. n - 1: a damaged list can give a wrong result, never a read out of bounds."""
    return tl.minimum(tl.maximum(x, 0), n - 1)


@triton.jit
def _relabel(p, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Move column 8b + 2c + e of every 16 to 4c + 2b + e: from where a product leaves its result in registers to where
    the next FP8 product reads its left operand, so nothing moves between threads. V's rows are stored in this order."""
    p = tl.reshape(p, [BLOCK_M, BLOCK_N // 16, 2, 4, 2])
    return tl.reshape(tl.permute(p, [0, 1, 3, 2, 4]), [BLOCK_M, BLOCK_N])


@triton.jit
def _load_k(
    k, batch_head, batch, head, k_batch, k_head, k_row, tile, first, rows, row_live, tiles,
    KIND: tl.constexpr, DESCRIPTORS: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Return keys ``(D, BLOCK_N)``: slots ``first ...`` of ``tile``, or the gathered token ``rows`` (16-bit)."""
    channels = tl.arange(0, D)
    if KIND == "16":
        offsets = rows.to(tl.int64)[None, :] * k_row + channels[:, None]
        keys = tl.load(k + batch * k_batch + head * k_head + offsets, mask=row_live[None, :], other=0.0)
    elif DESCRIPTORS:
        keys = k.load([(batch_head * tiles + tile) * SLOTS + first, 0]).T
    else:
        slots = tl.arange(0, rows.shape[0])
        start = ((batch_head * tiles + tile) * SLOTS + first).to(tl.int64)
        keys = tl.load(k + start * D + (slots[None, :] * D + channels[:, None]))
    return keys


@triton.jit
def _load_v(
    v, batch_head, batch, head, v_batch, v_head, v_row, tile, first, rows, row_live, tiles,
    KIND: tl.constexpr, DESCRIPTORS: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Return values ``(BLOCK_N, D)``: from FP8 columns, or the gathered token ``rows``."""
    channels = tl.arange(0, D)
    if KIND != "fp8":
        offsets = rows.to(tl.int64)[:, None] * v_row + channels[None, :]
        values = tl.load(v + batch * v_batch + head * v_head + offsets, mask=row_live[:, None], other=0.0)
    elif DESCRIPTORS:
        values = v.load([batch_head * D, tile * SLOTS + first]).T
    else:
        slots = tl.arange(0, rows.shape[0])
        width = tiles * SLOTS
        start = (batch_head.to(tl.int64) * D) * width + (tile * SLOTS + first)
        values = tl.load(v + start + (channels[None, :] * width + slots[:, None]))
    return values


@triton.jit
def _block(
    q, k, v, k_scale_ptr, index_ptr, live_ptr, list_ptr, block, q_factor,
    batch_head, batch, head, k_batch, k_head, k_row, v_batch, v_head, v_row, tiles, index_width,
    KIND: tl.constexpr, DESCRIPTORS: tl.constexpr, SCALE_PER_TOKEN: tl.constexpr, MASK: tl.constexpr,
    LIVE: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return ``(scores, factor, values)`` of one block of keys: raw scores with dead ones lowest, and what they are
    multiplied with, one number or one per row ``(BLOCK_M, 1)``."""
    K_BLOCKS: tl.constexpr = SLOTS // BLOCK_N
    slots = tl.arange(0, BLOCK_N)
    if K_BLOCKS == 1:
        tile = _clamp(tl.load(list_ptr + block), tiles)
        first = 0
    else:
        tile = _clamp(tl.load(list_ptr + block // K_BLOCKS), tiles)
        first = (block % K_BLOCKS) * BLOCK_N
    if MASK == "count":
        row_live = first + slots < tl.load(live_ptr + tile)
    else:
        row_live = first + slots < LIVE
    rows = slots
    if KIND != "fp8":
        rows = tl.load(index_ptr + tile * index_width + first + slots, mask=row_live, other=0)
    keys = _load_k(
        k, batch_head, batch, head, k_batch, k_head, k_row, tile, first, rows, row_live, tiles,
        KIND, DESCRIPTORS, SLOTS, D,
    )  # fmt: skip
    if KIND == "int8":
        bits = tl.dot(q, keys, tl.full([q.shape[0], BLOCK_N], INT_AS_FLOAT, tl.int32), out_dtype=tl.int32)
        scores = bits.to(tl.float32, bitcast=True) - INT_OFFSET
    else:
        scores = tl.dot(q, keys)
    factor = q_factor
    if KIND != "16":
        if SCALE_PER_TOKEN:
            key_rows = ((batch_head * tiles + tile) * SLOTS + first).to(tl.int64) + slots
            scores = scores * tl.load(k_scale_ptr + key_rows)[None, :]
        else:
            factor = q_factor * tl.load(k_scale_ptr + batch_head * tiles + tile)
    if MASK == "count" or LIVE < SLOTS:
        scores = tl.where(row_live[None, :], scores, DEAD_SCORE)
    values = _load_v(
        v, batch_head, batch, head, v_batch, v_head, v_row, tile, first, rows, row_live, tiles,
        KIND, DESCRIPTORS, SLOTS, D,
    )  # fmt: skip
    return scores, factor, values


@triton.jit
def _weights(scores, factor, shift, values, KIND: tl.constexpr):
    """Return ``(weights, rounded)``: 2 ** (scores * factor - shift), and what the second product multiplies."""
    weights = tl.exp2(scores * factor - shift)
    rounded = weights.to(values.dtype)
    if KIND == "fp8":
        rounded = _relabel(rounded, scores.shape[0], scores.shape[1])
    return weights, rounded


@triton.jit
def _sum(total, rescale, weights, rounded, ones, KIND: tl.constexpr, SUM_BY_MMA: tl.constexpr):
    """Return the running row sums with a block's weights added; no ``rescale``: the maximum is as before. In FP8 a row
    is divided by the sum of what the product really used, so its weights still add up to one."""
    if rescale is not None:
        total = total * (rescale[:, None] if SUM_BY_MMA else rescale)
    if SUM_BY_MMA:
        total += tl.dot(rounded, ones)
    elif KIND == "fp8":
        total += tl.sum(rounded.to(tl.float32), 1)
    else:
        total += tl.sum(weights, 1)
    return total


@triton.jit
def _highest(scores, factor, SCALE_PER_TOKEN: tl.constexpr):
    """Return each row's largest scaled score; the factor is positive, so the maximum comes first."""
    highest = tl.max(scores, 1)
    if SCALE_PER_TOKEN:
        factor = tl.reshape(factor, [scores.shape[0]])
    return highest * factor


@triton.jit
def _add(
    acc, row_sum, row_max, scores, factor, values, ones,
    KIND: tl.constexpr, SCALE_PER_TOKEN: tl.constexpr, SHIFT: tl.constexpr, SUM_BY_MMA: tl.constexpr,
    APART: tl.constexpr,
):  # fmt: skip
    """Return ``(acc, row_sum, row_max)`` with one block of keys added: a step of the online softmax."""
    new_max = tl.maximum(row_max, tl.ceil(_highest(scores, factor, SCALE_PER_TOKEN)))
    rescale = tl.exp2(row_max - new_max)
    weights, rounded = _weights(scores, factor, (new_max - SHIFT)[:, None], values, KIND)
    row_sum = _sum(row_sum, rescale, weights, rounded, ones, KIND, SUM_BY_MMA)
    return acc * rescale[:, None] + tl.dot(rounded, values, max_num_imprecise_acc=APART), row_sum, new_max


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def sparse_attention_forward(
    q_ptr,
    k,
    v,
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
    ones_ptr,
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
    heads,
    tokens,
    tiles,
    index_width,
    ids_width,
    patterns,
    pattern_batch,
    KIND: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr,
    MASK: tl.constexpr,
    LIVE: tl.constexpr,
    STATS: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAIRS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SUM_BY_MMA: tl.constexpr,
    APART: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write ``out (B, S, H, D)`` and, with STATS, ``lse`` and ``rowmax (B, H, S)``, all in token order.

    KIND 'fp8': q, k e4m3 in tile order, v transposed (``forward_codes``); 'int8': q, k int8 in tile order, v in token
    order; '16': all in token order, gathered through ``index``. MASK 'constant': every tile has LIVE live rows; 'last':
    every tile but the last one, which a list must name last; 'count': ``live`` tells. PAIRS: two blocks share one
    softmax step, so that small tiles pay for the rescaling as seldom as large ones. DESCRIPTORS: k and v are tensor
    descriptors. APART: after how many products the tensor core must hand over its sum (None: after a block). An FP8
    accumulator drops low bits, so the running sum must never be in it. Offsets that can pass 2**31 are 64-bit.
    """
    Q_BLOCKS: tl.constexpr = SLOTS // BLOCK_M
    K_BLOCKS: tl.constexpr = SLOTS // BLOCK_N
    SHIFT: tl.constexpr = FP8_SHIFT if KIND == "fp8" else 0.0
    BODY: tl.constexpr = "constant" if MASK == "last" else MASK

    q_tile = tl.program_id(0) // Q_BLOCKS
    batch_head = tl.program_id(1)
    batch = (batch_head // heads).to(tl.int64)
    head = (batch_head % heads).to(tl.int64)
    channels = tl.arange(0, D)
    q_slots = (tl.program_id(0) % Q_BLOCKS) * BLOCK_M + tl.arange(0, BLOCK_M)

    q_rows = (batch_head.to(tl.int64) * tiles + q_tile) * SLOTS + q_slots
    if KIND == "16":
        q_live = q_slots < tl.load(live_ptr + q_tile)
        q_tokens = tl.load(index_ptr + q_tile * index_width + q_slots, mask=q_live, other=0).to(tl.int64)
        q_offsets = q_tokens[:, None] * q_row + channels[None, :]
        q = tl.load(q_ptr + batch * q_batch + head * q_head + q_offsets, mask=q_live[:, None], other=0.0)
        q_factor = scale_log2
    else:
        q = tl.load(q_ptr + q_rows[:, None] * D + channels[None, :])
        if SCALE_PER_TOKEN:
            q_factor = tl.load(q_scale_ptr + q_rows)[:, None] * scale_log2
        else:
            q_factor = tl.load(q_scale_ptr + batch_head * tiles + q_tile) * scale_log2

    # The list of this tile under this head's pattern.
    pattern = _clamp(tl.load(pattern_ptr + batch * pattern_batch + head), patterns).to(tl.int64)
    count = tl.minimum(tl.load(count_ptr + pattern * tiles + q_tile), ids_width)
    list_ptr = ids_ptr + (pattern * tiles + q_tile) * ids_width
    blocks = count * K_BLOCKS
    STEP: tl.constexpr = 2 if PAIRS else 1

    row_max = tl.full([BLOCK_M], LOWEST_MAX, tl.float32)
    # The order of these lines decides, with some compilers, whether three programs fit on a multiprocessor.
    if SUM_BY_MMA:
        row_sum = tl.zeros([BLOCK_M, SUM_COLUMNS], tl.float32)
    else:
        row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    if SUM_BY_MMA:
        # Loaded: a constant would be made again in every step, at the cost of registers or of instructions.
        ones = tl.load(ones_ptr + (tl.arange(0, BLOCK_N)[:, None] * SUM_COLUMNS + tl.arange(0, SUM_COLUMNS)[None, :]))
    else:
        ones = None

    if MASK == "last":
        # The odd tile first, while the sums are zero and cost no registers. Of an empty list this adds some tile, which
        # is dropped at the end.
        blocks = tl.maximum(blocks - K_BLOCKS, 0)
        for first in tl.static_range(K_BLOCKS):
            scores, factor, values = _block(
                q, k, v, k_scale_ptr, index_ptr, live_ptr, list_ptr, blocks + first, q_factor,
                batch_head, batch, head, k_batch, k_head, k_row, v_batch, v_head, v_row, tiles, index_width,
                KIND, DESCRIPTORS, SCALE_PER_TOKEN, "count", LIVE, SLOTS, D, BLOCK_N,
            )  # fmt: skip
            acc, row_sum, row_max = _add(
                acc, row_sum, row_max, scores, factor, values, ones, KIND, SCALE_PER_TOKEN, SHIFT, SUM_BY_MMA, APART
            )

    for step in tl.range(0, blocks // STEP, num_stages=STAGES):
        scores, factor, values = _block(
            q, k, v, k_scale_ptr, index_ptr, live_ptr, list_ptr, step * STEP, q_factor,
            batch_head, batch, head, k_batch, k_head, k_row, v_batch, v_head, v_row, tiles, index_width,
            KIND, DESCRIPTORS, SCALE_PER_TOKEN, BODY, LIVE, SLOTS, D, BLOCK_N,
        )  # fmt: skip
        if PAIRS:
            scores2, factor2, values2 = _block(
                q, k, v, k_scale_ptr, index_ptr, live_ptr, list_ptr, step * STEP + 1, q_factor,
                batch_head, batch, head, k_batch, k_head, k_row, v_batch, v_head, v_row, tiles, index_width,
                KIND, DESCRIPTORS, SCALE_PER_TOKEN, BODY, LIVE, SLOTS, D, BLOCK_N,
            )  # fmt: skip
            highest = tl.maximum(_highest(scores, factor, SCALE_PER_TOKEN), _highest(scores2, factor2, SCALE_PER_TOKEN))
            new_max = tl.maximum(row_max, tl.ceil(highest))
            rescale = tl.exp2(row_max - new_max)
            shift = (new_max - SHIFT)[:, None]
            weights, rounded = _weights(scores, factor, shift, values, KIND)
            row_sum = _sum(row_sum, rescale, weights, rounded, ones, KIND, SUM_BY_MMA)
            product = tl.dot(rounded, values, max_num_imprecise_acc=APART)
            weights, rounded = _weights(scores2, factor2, shift, values2, KIND)
            row_sum = _sum(row_sum, None, weights, rounded, ones, KIND, SUM_BY_MMA)
            acc = acc * rescale[:, None] + tl.dot(rounded, values2, product, max_num_imprecise_acc=APART)
            row_max = new_max
        else:
            acc, row_sum, row_max = _add(
                acc, row_sum, row_max, scores, factor, values, ones, KIND, SCALE_PER_TOKEN, SHIFT, SUM_BY_MMA, APART
            )

    if PAIRS:
        for block in tl.range(blocks // STEP * STEP, blocks, num_stages=1):
            scores, factor, values = _block(
                q, k, v, k_scale_ptr, index_ptr, live_ptr, list_ptr, block, q_factor,
                batch_head, batch, head, k_batch, k_head, k_row, v_batch, v_head, v_row, tiles, index_width,
                KIND, DESCRIPTORS, SCALE_PER_TOKEN, BODY, LIVE, SLOTS, D, BLOCK_N,
            )  # fmt: skip
            acc, row_sum, row_max = _add(
                acc, row_sum, row_max, scores, factor, values, ones, KIND, SCALE_PER_TOKEN, SHIFT, SUM_BY_MMA, APART
            )

    if SUM_BY_MMA:
        row_sum = tl.max(row_sum, 1)
    # An empty list (or one of dead tiles only) leaves the sum at 0: the output is 0, the LSE -inf.
    empty = row_sum == 0.0
    if MASK == "last":
        # What was added in front belongs to no list.
        empty = empty | (count == 0)
        acc = tl.where(count == 0, 0.0, acc)
    row_sum = tl.where(empty, 1.0, row_sum)
    out = acc * (1.0 / row_sum)[:, None]
    if KIND == "fp8":
        out = out * tl.load(v_scale_ptr + batch_head * D + channels)[None, :]
    # Loaded here and not with the queries: it need not stay in registers through the loop.
    q_live = q_slots < tl.load(live_ptr + q_tile)
    out_tokens = tl.load(index_ptr + q_tile * index_width + q_slots, mask=q_live, other=0).to(tl.int64)
    out_rows = (batch * tokens + out_tokens) * heads + head
    out_offsets = out_rows[:, None] * D + channels[None, :]
    tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=q_live[:, None])
    if STATS:
        stats_offsets = batch_head.to(tl.int64) * tokens + out_tokens
        lse = tl.where(empty, float("-inf"), row_max - SHIFT + tl.log2(row_sum))
        tl.store(lse_ptr + stats_offsets, lse, mask=q_live)
        tl.store(rowmax_ptr + stats_offsets, tl.where(empty, 0.0, row_max), mask=q_live)
