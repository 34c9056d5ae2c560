"""The Triton kernels that quantize Q, K and V and bring them into tile order: statistics, their reduction, the codes.

Imports triton, so it is imported only by the launchers, and only when that path is asked for.

All are bound by memory: 16-byte loads of whole rows, all loads of a block before the first use, and enough
programs per multiprocessor that some load while others compute. Heads are the fastest axis of a grid, because the heads
of a token are neighbors in memory. Nothing is accumulated in an order that could differ between two runs.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Adding this to a number below 2**22 rounds it to an integer, to nearest even, in the lowest bits of the sum.
ROUNDER = tl.constexpr(1.5 * 2.0**23)
_NAN = tl.PropagateNan.ALL
ALL_NAN = tl.constexpr(_NAN)

# Plain counts: compiling again whenever one of them becomes a multiple of 16 would gain nothing.
_COUNTS = ["heads", "rows", "tokens", "tiles", "index_width", "cubes", "key_parts", "parts", "steps"]


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=ALL_NAN)


@triton.jit
def _magnitude(x):
    """Return ``|x|``, 0 where that is not finite: one broken number must not spoil the scale of all that share it."""
    x = tl.abs(x)
    return tl.where(x < float("inf"), x, 0.0)


@triton.jit
def _combine(sum_a, low_a, high_a, sum_b, low_b, high_b):
    return sum_a + sum_b, tl.minimum(low_a, low_b, propagate_nan=ALL_NAN), _larger(high_a, high_b)


@triton.jit
def _scale_of(amax, LARGEST: tl.constexpr, SMALLEST: tl.constexpr):
    """Return ``amax / LARGEST``; 1 where that is not above SMALLEST."""
    scale = tl.div_rn(amax, LARGEST)
    return tl.where(scale > SMALLEST, scale, 1.0)


@triton.jit
def _tokens(index_ptr, tile, slots, index_width):
    """Return the tokens of a tile's ``slots``, negative where dead, to address rows with."""
    return tl.load(index_ptr + tile * index_width + slots, mask=slots < index_width, other=-1).to(tl.int64)[:, None]


@triton.jit
def _rows(base, token, stride, D: tl.constexpr):
    """Return the rows of ``token (n, 1)``, zero where that is negative."""
    return tl.load(base + token * stride + tl.arange(0, D)[None, :], mask=token >= 0, other=0.0)


@triton.jit(do_not_specialize=_COUNTS)
def channel_statistics(
    k_ptr,
    v_ptr,
    k_sum_ptr,
    v_amax_ptr,
    k_batch,
    k_row,
    k_head,
    v_batch,
    v_row,
    v_head,
    heads,
    rows,
    tokens,
    parts,
    steps,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    D: tl.constexpr,
):
    """Write what a part of the sequence, ``steps`` blocks of ``BLOCK`` tokens, adds to ``k_sum`` and ``v_amax``,
    float32 ``(B*H, parts, D)``; either may be None. ``rows`` is B*H."""
    row = tl.program_id(0) % rows
    part = tl.program_id(0) // rows
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    channels = tl.arange(0, D)
    lines = tl.arange(0, BLOCK)
    k_base = k_ptr + batch * k_batch + head * k_head
    v_base = v_ptr + batch * v_batch + head * v_head
    k_sum = tl.zeros([BLOCK, D], tl.float32)
    v_amax = tl.zeros([BLOCK, D], tl.float32)
    for step in tl.range(part * steps, (part + 1) * steps, num_stages=STAGES):
        token = step * BLOCK + lines
        live = (token < tokens)[:, None]
        token = token.to(tl.int64)[:, None]
        if k_sum_ptr is not None:
            k = tl.load(k_base + token * k_row + channels[None, :], mask=live, other=0.0)
            k_sum += k.to(tl.float32)
        if v_amax_ptr is not None:
            v = tl.load(v_base + token * v_row + channels[None, :], mask=live, other=0.0)
            v_amax = _larger(v_amax, _magnitude(v.to(tl.float32)))
    target = (row.to(tl.int64) * parts + part) * D + channels
    if k_sum_ptr is not None:
        tl.store(k_sum_ptr + target, tl.sum(k_sum, 0))
    if v_amax_ptr is not None:
        tl.store(v_amax_ptr + target, tl.reduce(v_amax, 0, _larger))


@triton.jit(do_not_specialize=_COUNTS)
def key_extremes(
    k_ptr,
    index_ptr,
    k_low_ptr,
    k_high_ptr,
    k_sum_ptr,
    k_batch,
    k_row,
    k_head,
    heads,
    rows,
    tiles,
    index_width,
    parts,
    steps,
    STAGES: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
):
    """Write the smallest and largest of every tile and channel, ``k_low, k_high (B*H, tiles, D)`` in K's type, and what
    a part of ``steps`` tiles adds to ``k_sum (B*H, parts, D)``."""
    row = tl.program_id(0) % rows
    part = tl.program_id(0) // rows
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    row = row.to(tl.int64)
    channels = tl.arange(0, D)
    slots = tl.arange(0, SLOTS)
    base = k_ptr + batch * k_batch + head * k_head
    total = tl.zeros([D], tl.float32)
    for tile in tl.range(part * steps, tl.minimum((part + 1) * steps, tiles), num_stages=STAGES):
        token = _tokens(index_ptr, tile, slots, index_width)
        first = tl.load(index_ptr + tile * index_width).to(tl.int64)
        # A dead row repeats the first one, which changes no extreme.
        k = tl.load(base + tl.where(token >= 0, token, first) * k_row + channels[None, :]).to(tl.float32)
        finite = tl.abs(k) < float("inf")
        low, high = tl.where(finite, k, float("inf")), tl.where(finite, k, float("-inf"))
        added, low, high = tl.reduce((tl.where(token >= 0, k, 0.0), low, high), 0, _combine)
        total += added
        extremes = (row * tiles + tile) * D + channels
        tl.store(k_low_ptr + extremes, low.to(k_low_ptr.dtype.element_ty))
        tl.store(k_high_ptr + extremes, high.to(k_high_ptr.dtype.element_ty))
    tl.store(k_sum_ptr + (row * parts + part) * D + channels, total)


@triton.jit(do_not_specialize=_COUNTS)
def query_maxima(
    q_ptr,
    index_ptr,
    cube_ptr,
    amax_ptr,
    q_batch,
    q_row,
    q_head,
    heads,
    rows,
    index_width,
    cubes,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
):
    """Raise ``amax (B*H, cubes)`` of one tile's cube to the bits of its largest ``|q|``: bits of numbers that are not
    negative are ordered like the numbers, a NaN above all, and a maximum of integers has no order."""
    row = tl.program_id(0) % rows
    tile = tl.program_id(0) // rows
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    token = _tokens(index_ptr, tile, tl.arange(0, SLOTS), index_width)
    q = _rows(q_ptr + batch * q_batch + head * q_head, token, q_row, D)
    amax = tl.reduce(_magnitude(q.to(tl.float32)), None, _larger).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    cube = tl.load(cube_ptr + tile).to(tl.int64)
    tl.atomic_max(amax_ptr + row.to(tl.int64) * cubes + cube, amax, sem="relaxed")


@triton.jit(do_not_specialize=_COUNTS)
def finish_statistics(
    k_sum_ptr,
    v_amax_ptr,
    k_low_ptr,
    k_high_ptr,
    cube_ptr,
    mean_ptr,
    v_scale_ptr,
    v_inverse_ptr,
    k_amax_ptr,
    rows,
    tokens,
    tiles,
    cubes,
    key_parts,
    parts,
    LARGEST_V: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
):
    """Reduce the parts: ``mean``, ``v_scale`` and its reciprocal, float32 ``(B*H, D)``, and with ``k_low`` the bits of
    the largest ``|k - mean|`` of a cube, ``k_amax (B*H, cubes)``.

    With ``v_amax`` the first program of a row of B*H takes V; every other one takes a block of tiles, and each computes
    the same mean in the same order. Rounding is monotonic, so the largest difference from the mean is that of an
    extreme, to the last bit.
    """
    row = (tl.program_id(0) % rows).to(tl.int64)
    block = tl.program_id(0) // rows
    channels = tl.arange(0, D)
    lines = tl.arange(0, PARTS)[:, None]
    if v_amax_ptr is not None:
        if block == 0:
            amax = tl.zeros([D], tl.float32)
            for start in range(0, parts, PARTS):
                part = start + lines
                offsets = (row * parts + part) * D + channels[None, :]
                amax = _larger(amax, tl.reduce(tl.load(v_amax_ptr + offsets, mask=part < parts, other=0.0), 0, _larger))
            scale = _scale_of(amax, LARGEST_V, 0.0)
            tl.store(v_scale_ptr + row * D + channels, scale)
            tl.store(v_inverse_ptr + row * D + channels, tl.div_rn(1.0, scale))
        block -= 1
    if block >= 0:
        mean = tl.zeros([D], tl.float32)
        if k_sum_ptr is not None:
            for start in range(0, key_parts, PARTS):
                part = start + lines
                offsets = (row * key_parts + part) * D + channels[None, :]
                mean += tl.sum(tl.load(k_sum_ptr + offsets, mask=part < key_parts, other=0.0), 0)
            mean = tl.div_rn(mean, tokens.to(tl.float32))
            # Any shift leaves softmax as it is, so one broken token need not spread to all others through the mean.
            mean = tl.where(tl.abs(mean) < float("inf"), mean, 0.0)
            if block == 0:
                tl.store(mean_ptr + row * D + channels, mean)
        if k_low_ptr is not None:
            tile = block * BLOCK + tl.arange(0, BLOCK)
            offsets = (row * tiles + tile[:, None]) * D + channels[None, :]
            live = (tile < tiles)[:, None]
            low = tl.load(k_low_ptr + offsets, mask=live, other=0.0).to(tl.float32)
            high = tl.load(k_high_ptr + offsets, mask=live, other=0.0).to(tl.float32)
            amax = _larger(_magnitude(low - mean[None, :]), _magnitude(high - mean[None, :]))
            amax = tl.reduce(amax, 1, _larger).to(tl.int32, bitcast=True) & 0x7FFFFFFF
            cube = tl.load(cube_ptr + tile, mask=tile < tiles, other=0).to(tl.int64)
            tl.atomic_max(k_amax_ptr + row * cubes + cube, amax, mask=tile < tiles, sem="relaxed")


@triton.jit
def _codes(x, inverse, out_ptr, FORM: tl.constexpr):
    """Return ``round(clamp(x * inverse))`` in the type of ``out_ptr``: codes, or their values."""
    target: tl.constexpr = out_ptr.dtype.element_ty
    if FORM == "none":
        return x.to(target)
    x = x * inverse
    if FORM == "e4m3":
        # The cast saturates at 448 and keeps NaN.
        codes = x.to(tl.float8e4nv)
        if target == tl.float8e4nv:
            return codes
        return codes.to(tl.float32).to(target)
    x = tl.minimum(tl.maximum(x, -127.0, propagate_nan=ALL_NAN), 127.0, propagate_nan=ALL_NAN) + ROUNDER
    if target == tl.int8:
        # The lowest byte; an integer has no NaN, so that becomes 0.
        return tl.where(x == x, x, ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)
    return (x - ROUNDER).to(target)


@triton.jit
def _write_rows(
    x, out_ptr, scale_ptr, amax_ptr, row, tile, tiles, cube, cubes,
    GRANULARITY: tl.constexpr, FORM: tl.constexpr, LARGEST: tl.constexpr, SMALLEST: tl.constexpr,
    SLOTS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write the codes of one tile ``x (SLOTS, D)`` of Q or K and its scales."""
    slots = tl.arange(0, SLOTS)
    channels = tl.arange(0, D)
    line = (row * tiles + tile) * SLOTS
    inverse = 1.0
    if GRANULARITY == "token":
        scale = _scale_of(tl.reduce(_magnitude(x), 1, _larger), LARGEST, SMALLEST)
        tl.store(scale_ptr + line + slots, scale)
        inverse = tl.div_rn(1.0, scale)[:, None]
    elif GRANULARITY != "none":
        if GRANULARITY == "tile":
            amax = tl.reduce(_magnitude(x), None, _larger)
        else:
            amax = tl.load(amax_ptr + row * cubes + cube).to(tl.float32, bitcast=True)
        scale = _scale_of(amax, LARGEST, SMALLEST)
        tl.store(scale_ptr + row * tiles + tile, scale)
        inverse = tl.div_rn(1.0, scale)
    codes = _codes(x, inverse, out_ptr, FORM)
    tl.store(out_ptr + line * D + (slots[:, None] * D + channels[None, :]), codes)


@triton.jit(do_not_specialize=_COUNTS)
def write_tiles(
    q_ptr,
    k_ptr,
    v_ptr,
    index_ptr,
    cube_ptr,
    mean_ptr,
    v_scale_ptr,
    v_inverse_ptr,
    q_amax_ptr,
    k_amax_ptr,
    q_out_ptr,
    k_out_ptr,
    v_out_ptr,
    q_scale_ptr,
    k_scale_ptr,
    q_batch,
    q_row,
    q_head,
    k_batch,
    k_row,
    k_head,
    v_batch,
    v_row,
    v_head,
    heads,
    rows,
    tiles,
    index_width,
    cubes,
    GRANULARITY: tl.constexpr,
    FORM: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
):
    """Write one tile of one head: Q and K with their scales and, if ``v_out`` is given, V.

    ``q_out, k_out (B*H, tiles*SLOTS, D)``: codes, or in a wider type their values. ``v_out``: TRANSPOSED
    ``(B*H, D, tiles*SLOTS)`` codes with every 16 slots in the order of ``V_ORDER``; otherwise ``(B*H, tiles*SLOTS, D)``
    rounded values (V itself without ``v_scale``). Dead rows are zero everywhere. GRANULARITY: 'token', 'tile', 'cube'
    or 'none'. ``rows`` is B*H.
    """
    row = tl.program_id(0) % rows
    tile = tl.program_id(0) // rows
    batch, head = (row // heads).to(tl.int64), (row % heads).to(tl.int64)
    row = row.to(tl.int64)
    channels = tl.arange(0, D)
    slots = tl.arange(0, SLOTS)
    cube = 0
    if GRANULARITY == "cube":
        cube = tl.load(cube_ptr + tile).to(tl.int64)
    q_base = q_ptr + batch * q_batch + head * q_head
    k_base = k_ptr + batch * k_batch + head * k_head
    v_base = v_ptr + batch * v_batch + head * v_head

    # One tensor after the other: 64 registers then suffice, and four programs of 64 slots share a multiprocessor, each
    # with 16 KB on the way. Holding all three takes 112 registers for two programs with three times as much, whose
    # loads and computations overlap less.
    token = _tokens(index_ptr, tile, slots, index_width)
    q = _rows(q_base, token, q_row, D).to(tl.float32)
    _write_rows(
        q, q_out_ptr, q_scale_ptr, q_amax_ptr, row, tile, tiles, cube, cubes,
        GRANULARITY, FORM, LARGEST, SMALLEST, SLOTS, D,
    )  # fmt: skip
    k = _rows(k_base, token, k_row, D).to(tl.float32)
    if mean_ptr is not None:
        k = tl.where(token >= 0, k - tl.load(mean_ptr + row * D + channels)[None, :], 0.0)
    _write_rows(
        k, k_out_ptr, k_scale_ptr, k_amax_ptr, row, tile, tiles, cube, cubes,
        GRANULARITY, FORM, LARGEST, SMALLEST, SLOTS, D,
    )  # fmt: skip

    if TRANSPOSED:
        # Four neighbors of a transposed row are the slots 2c, 2c+1, 2c+8, 2c+9 of a group of 16. Loaded as four tensors
        # they meet in one thread, are converted in pairs and move between threads as one 32-bit word.
        fours = tl.arange(0, SLOTS // 4)
        first = fours // 4 * 16 + fours % 4 * 2
        v0 = _rows(v_base, _tokens(index_ptr, tile, first, index_width), v_row, D)
        v1 = _rows(v_base, _tokens(index_ptr, tile, first + 1, index_width), v_row, D)
        v2 = _rows(v_base, _tokens(index_ptr, tile, first + 8, index_width), v_row, D)
        v3 = _rows(v_base, _tokens(index_ptr, tile, first + 9, index_width), v_row, D)
        inverse = tl.load(v_inverse_ptr + row * D + channels)[None, :]
        even = tl.join(v0.to(tl.float32) * inverse, v2.to(tl.float32) * inverse)
        odd = tl.join(v1.to(tl.float32) * inverse, v3.to(tl.float32) * inverse)
        codes = tl.reshape(tl.join(even, odd), [SLOTS // 4, D, 4]).to(tl.float8e4nv)
        codes = tl.reshape(tl.permute(codes, (1, 0, 2)), [D, SLOTS])
        columns = tiles.to(tl.int64) * SLOTS
        lines = v_out_ptr + (row * D + channels) * columns + tile.to(tl.int64) * SLOTS
        tl.store(lines[:, None] + slots[None, :], codes)
    elif v_out_ptr is not None:
        v = _rows(v_base, token, v_row, D).to(tl.float32)
        if v_scale_ptr is not None:
            scale = tl.load(v_scale_ptr + row * D + channels)[None, :]
            inverse = tl.load(v_inverse_ptr + row * D + channels)[None, :]
            v = (v * inverse).to(tl.float8e4nv).to(tl.float32) * scale
        line = (row * tiles + tile) * SLOTS * D
        values = v.to(v_out_ptr.dtype.element_ty)
        tl.store(v_out_ptr + line + (slots[:, None] * D + channels[None, :]), values)
