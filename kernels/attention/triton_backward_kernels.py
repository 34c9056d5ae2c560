"""The Triton kernels of the sparse backward: what rows need, dQ over the lists, dK and dV over their transpose.

Imports triton, so it is imported only by the launcher, and only when that path is asked for.

All operands lie in tile order, ``SLOTS`` rows per tile, dead rows zero. With ``g`` a row's output gradient, ``p`` a
weight and ``bias`` chosen so that ``p = exp2(score - bias)``:

    dV = round(p)^T g        dS = p * (g V^T - delta)        dQ = scale * dS K        dK = scale * dS^T Q

In FP8 ``p`` is the very number that the forward rounded, and the row's sum is divided out of ``g`` and ``delta``
beforehand; else ``p`` is the normalized weight. Every element is summed by one program in the order of its list, so
results are the same in every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

# FP8 weights are 2**8 times larger, as in the forward.
FP8_SHIFT = tl.constexpr(8.0)
# The bias of a row that is dead or sees nothing: all its weights are 0, whatever the scores are.
NOTHING = tl.constexpr(1.0e30)

# Plain counts: compiling again whenever one of them becomes a multiple of 16 would gain nothing.
_COUNTS = ["scale", "heads", "tokens", "tiles", "index_width", "ids_width", "patterns", "pattern_batch"]


@triton.jit(do_not_specialize=["heads", "tokens", "index_width"])
def backward_rows(
    grad_ptr,
    out_ptr,
    lse_ptr,
    rowmax_ptr,
    index_ptr,
    q_scale_ptr,
    tiled_ptr,
    bias_ptr,
    delta_ptr,
    scaled_delta_ptr,
    grad_batch,
    grad_head,
    grad_row,
    out_batch,
    out_head,
    out_row,
    heads,
    tokens,
    index_width,
    ROUNDED: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write, in tile order, the gradient's rows, ``bias`` and ``delta``, and ``delta`` times the query's scale; where a
    row is dead or sees nothing, ``bias`` is ``NOTHING`` and the rest is 0.

    grad and out are ``(B, S, H, D)``, any strides; lse and rowmax ``(B, H, S)``. ROUNDED: weights are exp2 of the score
    less the maximum, times 2^8, so gradient and delta are divided by the sum that the forward divided by.
    """
    BLOCKS: tl.constexpr = SLOTS // BLOCK
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    channels = tl.arange(0, D)
    rows, live = _tokens(index_ptr, tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS, tokens, index_width, BLOCK)

    lse = tl.load(lse_ptr + batch_head * tokens + rows, mask=live, other=float("-inf"))
    filled = lse != float("-inf")  # also true for NaN, which has to stay
    grad_base = grad_ptr + batch * grad_batch + head * grad_head
    out_base = out_ptr + batch * out_batch + head * out_head
    mask = filled[:, None]
    grad = tl.load(grad_base + rows[:, None] * grad_row + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    out = tl.load(out_base + rows[:, None] * out_row + channels[None, :], mask=mask, other=0.0).to(tl.float32)
    if ROUNDED:
        bias = tl.load(rowmax_ptr + batch_head * tokens + rows, mask=filled, other=0.0) - FP8_SHIFT
        grad *= tl.where(filled, tl.exp2(bias - lse), 0.0)[:, None]
    else:
        bias = lse
    # Of the gradient as the products will read it: its rounding then cancels in dP - delta.
    grad = grad.to(tiled_ptr.dtype.element_ty)
    delta = tl.sum(grad.to(tl.float32) * out, 1)

    target = batch_head * tl.num_programs(0) * BLOCK + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(tiled_ptr + target[:, None] * D + channels[None, :], grad)
    tl.store(bias_ptr + target, tl.where(filled, bias, NOTHING))
    tl.store(delta_ptr + target, delta)
    if SCALE_PER_TOKEN:
        q_scale = tl.load(q_scale_ptr + target)
    else:
        q_scale = tl.load(q_scale_ptr + (batch_head * (tl.num_programs(0) // BLOCKS) + tl.program_id(0) // BLOCKS))
    tl.store(scaled_delta_ptr + target, delta * q_scale)


@triton.jit(do_not_specialize=_COUNTS)
def backward_queries(
    q,
    k,
    v,
    grad,
    q_scale_ptr,
    k_scale_ptr,
    bias_ptr,
    delta_ptr,
    dq_ptr,
    index_ptr,
    ids_ptr,
    count_ptr,
    pattern_ptr,
    scale,
    heads,
    tokens,
    tiles,
    index_width,
    ids_width,
    patterns,
    pattern_batch,
    ROUNDED: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write ``dq (B, S, H, D)``: one program sums ``BLOCK`` query rows over the key tiles of their list, ``STEP`` rows
    at a time. q, k, v, grad: pointers or tensor descriptors of ``(B*H*tiles*SLOTS, D)``."""
    BLOCKS: tl.constexpr = SLOTS // BLOCK
    STEPS: tl.constexpr = SLOTS // STEP
    LARGEST: tl.constexpr = FP8_SHIFT if ROUNDED else 0.0
    q_tile = tl.program_id(0) // BLOCKS
    batch_head = tl.program_id(1)
    first_tile = batch_head * tiles
    log2_scale = scale * 1.4426950408889634

    row = first_tile.to(tl.int64) * SLOTS + tl.program_id(0) * BLOCK
    rows = row + tl.arange(0, BLOCK)
    queries = _load(q, row, D, BLOCK, DESCRIPTORS)
    grads = _load(grad, row, D, BLOCK, DESCRIPTORS)
    bias = tl.load(bias_ptr + rows)
    delta = tl.load(delta_ptr + rows)
    if SCALE_PER_TOKEN:
        q_factor = tl.load(q_scale_ptr + rows) * log2_scale
    else:
        q_factor = tl.load(q_scale_ptr + first_tile + q_tile) * log2_scale

    list_ptr, count = _list(
        ids_ptr, count_ptr, pattern_ptr, batch_head, q_tile, heads, tiles, ids_width, patterns, pattern_batch
    )
    dq = tl.zeros([BLOCK, D], tl.float32)
    for step in range(0, tl.maximum(count * STEPS, 1)):
        k_tile = _tile(list_ptr + step // STEPS, tiles)
        row = (first_tile + k_tile).to(tl.int64) * SLOTS + (step % STEPS) * STEP
        keys = _load(k, row, D, STEP, DESCRIPTORS)
        values = _load(v, row, D, STEP, DESCRIPTORS)
        scores = tl.dot(queries, keys.T, input_precision="ieee")
        dp = tl.dot(grads, values.T, input_precision="ieee")
        # The scale of a key belongs to the product with the keys' codes below; here it costs nothing.
        if SCALE_PER_TOKEN:
            k_factor = tl.load(k_scale_ptr + row + tl.arange(0, STEP))
            exponent = (scores * q_factor[:, None]) * k_factor[None, :] - bias[:, None]
            dp = (dp - delta[:, None]) * k_factor[None, :]
        else:
            k_factor = tl.load(k_scale_ptr + first_tile + k_tile)
            exponent = scores * (q_factor * k_factor) - bias[:, None]
            dp = dp * k_factor - (delta * k_factor)[:, None]
        # A dead key's score is 0 where all others may lie far below: its weight must not become infinite, since
        # infinity times the key's zeros is NaN. Live keys cannot pass the bound.
        weights = tl.exp2(tl.minimum(exponent, LARGEST))
        dq = tl.dot((weights * dp).to(keys.dtype), keys, dq, input_precision="ieee")

    dq = tl.where(count > 0, dq * scale, 0.0)
    _store(dq_ptr, dq, index_ptr, q_tile, tl.program_id(0) % BLOCKS, batch_head, heads, tokens, index_width)


@triton.jit(do_not_specialize=_COUNTS)
def backward_keys(
    q,
    k,
    v,
    grad,
    q_scale_ptr,
    k_scale_ptr,
    bias_ptr,
    scaled_delta_ptr,
    dk_ptr,
    dv_ptr,
    index_ptr,
    ids_ptr,
    count_ptr,
    pattern_ptr,
    scale,
    heads,
    tokens,
    tiles,
    index_width,
    ids_width,
    patterns,
    pattern_batch,
    ROUNDED: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Write ``dk`` and ``dv (B, S, H, D)``: one program sums ``BLOCK`` key rows over the query tiles that see them,
    ``STEP`` rows at a time. Scores are transposed, keys along the rows, so that both products that sum over queries
    take their weights from registers. Dead keys fill rows of their own, which are not stored."""
    BLOCKS: tl.constexpr = SLOTS // BLOCK
    STEPS: tl.constexpr = SLOTS // STEP
    k_tile = tl.program_id(0) // BLOCKS
    batch_head = tl.program_id(1)
    first_tile = batch_head * tiles
    log2_scale = scale * 1.4426950408889634

    row = first_tile.to(tl.int64) * SLOTS + tl.program_id(0) * BLOCK
    keys = _load(k, row, D, BLOCK, DESCRIPTORS)
    values = _load(v, row, D, BLOCK, DESCRIPTORS)
    if SCALE_PER_TOKEN:
        k_factor = tl.load(k_scale_ptr + row + tl.arange(0, BLOCK)) * log2_scale
    else:
        k_factor = tl.load(k_scale_ptr + first_tile + k_tile) * log2_scale

    list_ptr, count = _list(
        ids_ptr, count_ptr, pattern_ptr, batch_head, k_tile, heads, tiles, ids_width, patterns, pattern_batch
    )
    dk = tl.zeros([BLOCK, D], tl.float32)
    dv = tl.zeros([BLOCK, D], tl.float32)
    for step in range(0, tl.maximum(count * STEPS, 1)):
        q_tile = _tile(list_ptr + step // STEPS, tiles)
        row = (first_tile + q_tile).to(tl.int64) * SLOTS + (step % STEPS) * STEP
        rows = row + tl.arange(0, STEP)
        queries = _load(q, row, D, STEP, DESCRIPTORS)
        grads = _load(grad, row, D, STEP, DESCRIPTORS)
        scores = tl.dot(keys, queries.T, input_precision="ieee")
        # Vectors along the columns take many registers, so each is read just before it is needed.
        bias = tl.load(bias_ptr + rows)
        if SCALE_PER_TOKEN:
            q_factor = tl.load(q_scale_ptr + rows)[None, :]
            exponent = (scores * k_factor[:, None]) * q_factor - bias[None, :]
        else:
            q_factor = tl.load(q_scale_ptr + first_tile + q_tile)
            exponent = scores * (q_factor * k_factor) - bias[None, :]
        weights = tl.exp2(exponent)
        # Back by way of 16 and 32 bits: the direct conversion takes turns with exp2 in the same slow unit.
        rounded = weights.to(tl.float8e4nv).to(tl.float16).to(tl.float32) if ROUNDED else weights
        dv = tl.dot(rounded.to(grads.dtype), grads, dv, input_precision="ieee")
        dp = tl.dot(values, grads.T, input_precision="ieee")
        # The scale of a query belongs to the product with the queries' codes; here it costs nothing.
        delta = tl.load(scaled_delta_ptr + rows)
        ds = weights * (dp * q_factor - delta[None, :])
        dk = tl.dot(ds.to(queries.dtype), queries, dk, input_precision="ieee")

    dk, dv = tl.where(count > 0, dk * scale, 0.0), tl.where(count > 0, dv, 0.0)
    part = tl.program_id(0) % BLOCKS
    _store(dk_ptr, dk, index_ptr, k_tile, part, batch_head, heads, tokens, index_width)
    _store(dv_ptr, dv, index_ptr, k_tile, part, batch_head, heads, tokens, index_width)


@triton.jit
def _load(source, row, D: tl.constexpr, ROWS: tl.constexpr, DESCRIPTORS: tl.constexpr):
    """Return ``ROWS`` consecutive rows of ``source (rows, D)`` from ``row`` on."""
    if DESCRIPTORS:
        rows = source.load([row.to(tl.int32), 0])
    else:
        rows = tl.load(source + row * D + (tl.arange(0, ROWS)[:, None] * D + tl.arange(0, D)[None, :]))
    return rows


@triton.jit
def _tokens(index_ptr, tile, part, tokens, index_width, BLOCK: tl.constexpr):
    """Return the tokens of a tile's ``part``-th ``BLOCK`` slots, int64 and always in range, and which are live."""
    slots = part * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(index_ptr + tile * index_width + slots, mask=slots < index_width, other=-1).to(tl.int64)
    live = (found >= 0) & (found < tokens)
    return tl.where(live, found, 0), live


@triton.jit
def _list(ids_ptr, count_ptr, pattern_ptr, batch_head, tile, heads, tiles, ids_width, patterns, pattern_batch):
    """Return where the list of a tile under its head's pattern starts, and its length; never beyond the table.

    The loops over a list run at least once, and an empty list's sums are dropped: were a loop skipped, its sums would
    come from elsewhere than its products, and the assembler would then run Hopper's products one by one.
    """
    pattern = tl.load(pattern_ptr + (batch_head // heads) * pattern_batch + batch_head % heads)
    entry = tl.minimum(tl.maximum(pattern, 0), patterns - 1).to(tl.int64) * tiles + tile
    return ids_ptr + entry * ids_width, tl.minimum(tl.load(count_ptr + entry), ids_width)


@triton.jit
def _tile(id_ptr, tiles):
    """Return a listed tile, never one that does not exist."""
    return tl.minimum(tl.maximum(tl.load(id_ptr), 0), tiles - 1)


@triton.jit
def _store(target_ptr, x, index_ptr, tile, part, batch_head, heads, tokens, index_width):
    """Write the live rows of ``x (BLOCK, D)``, part of a tile, to their tokens in contiguous ``(B, S, H, D)``."""
    BLOCK: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    token, live = _tokens(index_ptr, tile, part, tokens, index_width, BLOCK)
    rows = ((batch_head // heads).to(tl.int64) * tokens + token) * heads + batch_head % heads
    offsets = rows[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(target_ptr + offsets, x.to(target_ptr.dtype.element_ty), mask=live[:, None])
