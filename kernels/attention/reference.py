"""Block-sparse attention in plain torch: the oracle of the kernels, and the implementation on a CPU.

Layouts: q, k, v, out ``(B, S, H, D)``; log-sum-exp and row maximum float32 ``(B, H, S)``, in log2 units. Inside,
everything is float32 in tile order ``(B*H, tiles, width, D)``; heads that share a pattern run together, in chunks of
heads and query tiles whose scores and gathered keys stay below a bound, so memory does not depend on density.

FP8 follows one rule for P: the row maximum is rounded up to an integer in log2 and treated as a constant, P is scaled
by 2^8 inside the exponent and rounded to e4m3, and the row is normalized by the sum of the *rounded* P. Rounded P then
hardly depends on block order, and with P = exp2(s - lse) the straight-through gradient is exactly
``dS = P * (dP - rowsum(dO * O))`` with the ordinary output. The format 'int8' rounds Q and K to 8-bit integers and
leaves V and P alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..quantize.fp8 import channel_scales, fake_quantize_, group_scales, round_e4m3_, to_tiles, token_mean
from .spec import Spec

LOG2E = 1.4426950408889634
# P is scaled by 2^8 before the cast: its largest value then is 256, below e4m3's 448, and small ones stay normal.
P_SHIFT = 8.0
# Query tiles per product: 8 gave 30 % over 1 on a CPU; 16 helps where few heads fill a product.
MAX_CHUNK = 16
# Numbers that one chunk may hold: a share of one input, but never so few that small problems become many calls.
CHUNK_SHARE = 0.25
CHUNK_FLOOR = 1 << 20


@dataclass(frozen=True)
class _Chunk:
    """Query tiles ``tiles`` of neighboring flat B*H ``rows``, and the key tiles ``ids`` that each sees, ``(n, count)``;
    tiles that see everything share one list, ``(1, count)``."""

    rows: slice
    tiles: torch.Tensor
    ids: torch.Tensor


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, ...]:
    """Return ``(out, lse, rowmax)``; rows that see nothing get output 0, lse -inf and maximum 0."""
    batch, tokens, heads, dim = q.shape
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = torch.full((batch * heads, tokens), -math.inf, dtype=torch.float32, device=q.device)
    rowmax = torch.zeros((batch * heads, tokens), dtype=torch.float32, device=q.device)
    qt, kt, vt = _prepare(q, k, v, spec)
    for chunk in _chunks(spec, batch, heads, dim):
        keys, values = _gather(kt, chunk), _gather(vt, chunk)
        scores, maximum = _scores(_rows(qt, chunk), keys, chunk, spec)
        p = scores.sub_(maximum - P_SHIFT).exp2_()
        if spec.format == "e4m3":
            round_e4m3_(p)
        total = p.sum(-1, keepdim=True)
        o = torch.matmul(p, values).div_(total)
        where, b, h, token = _targets(chunk, spec, heads)
        out[b, token, h] = _live(o, where).to(q.dtype)
        rows = b * heads + h
        lse[rows, token] = _live(maximum - P_SHIFT + total.log2(), where)[..., 0]
        rowmax[rows, token] = _live(maximum, where)[..., 0]
    return out, lse.view(batch, heads, tokens), rowmax.view(batch, heads, tokens)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    rowmax: torch.Tensor,
    spec: Spec,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``(dq, dk, dv)``: the straight-through gradient that matches ``forward`` (K's mean is a constant).

    Q, K and V are quantized again exactly as in the forward; P is rounded for dV and not for dS.
    """
    batch, tokens, heads, dim = q.shape
    delta = torch.linalg.vecdot(grad.float(), out.float()).transpose(1, 2).reshape(batch * heads, tokens)
    lse, rowmax = lse.view(batch * heads, tokens), rowmax.view(batch * heads, tokens)
    qt, kt, vt = _prepare(q, k, v, spec)
    gt = to_tiles(grad, spec.index).flatten(0, 1)
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
    dkt, dvt = torch.zeros_like(kt), torch.zeros_like(vt)
    for chunk in _chunks(spec, batch, heads, dim):
        keys, values = _gather(kt, chunk), _gather(vt, chunk)
        queries, grads = _rows(qt, chunk), _rows(gt, chunk)
        scores, _ = _scores(queries, keys, chunk, spec, need_max=False)
        row_lse, row_max, row_delta = (_row_stats(x, chunk, spec) for x in (lse, rowmax, delta))
        total = (row_lse - row_max + P_SHIFT).exp2_()
        p = scores.sub_(row_max - P_SHIFT).exp2_()
        rounded = round_e4m3_(p.clone()) if spec.format == "e4m3" else p
        _scatter(dvt, torch.matmul((rounded / total).transpose(-1, -2), grads), chunk)
        del rounded
        ds = torch.matmul(grads, values.transpose(-1, -2)).sub_(row_delta).mul_(p.div_(total))
        where, b, h, token = _targets(chunk, spec, heads)
        scale = 1.0 / math.sqrt(dim)
        dq[b, token, h] = _live(torch.matmul(ds, keys).mul_(scale), where).to(q.dtype)
        # Queries carry scale * log2(e) for the scores; dK wants scale alone.
        _scatter(dkt, torch.matmul(ds.transpose(-1, -2), queries).div_(LOG2E), chunk)
    del qt, kt, vt, gt
    return dq, _to_tokens(dkt, k, spec), _to_tokens(dvt, v, spec)


def _prepare(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spec: Spec) -> tuple[torch.Tensor, ...]:
    """Return q (times softmax scale and log2 e), k, v in tile order, quantized if the spec says so."""
    qt, kt, vt = (to_tiles(x, spec.index) for x in (q, k, v))
    if spec.format != "none":
        if spec.smooth_k:
            kt -= token_mean(k)
            kt.masked_fill_((spec.index < 0)[None, None, :, :, None], 0.0)
        for x in (qt, kt):
            fake_quantize_(x, group_scales(x, spec.granularity, spec.cube, spec.cubes, spec.format), spec.format)
    if spec.format == "e4m3":
        fake_quantize_(vt, channel_scales(vt))
    qt *= LOG2E / math.sqrt(q.shape[-1])
    return qt.flatten(0, 1), kt.flatten(0, 1), vt.flatten(0, 1)


def _chunks(spec: Spec, batch: int, heads: int, dim: int) -> Iterator[_Chunk]:
    """Yield chunks of query tiles with equal counts, pattern by pattern; tiles that see nothing are left out."""
    tiles, width = spec.index.shape
    budget = max(CHUNK_FLOOR, CHUNK_SHARE * batch * heads * tiles * width * dim)
    patterns = spec.pattern_of_head.expand(batch, heads).reshape(-1)
    everything = torch.arange(tiles, device=spec.ids.device)[None]
    for p in range(spec.ids.shape[0]):
        for count in torch.unique(spec.count[p]).tolist():
            if count == 0:
                continue
            full = count == tiles
            # Numbers held per query tile and row: scores and three temporaries, gathered keys and values.
            held = count * width * (4 * width + (0 if full else 2 * dim))
            size = max(1, min(MAX_CHUNK, int(budget / held)))
            members = torch.nonzero(spec.count[p] == count).flatten()
            for rows in _spans(patterns == p, max(1, int(budget / (held * size)))):
                for part in members.split(size):
                    yield _Chunk(rows, part, everything if full else spec.ids[p, part, :count].long())


def _spans(chosen: torch.Tensor, longest: int) -> Iterator[slice]:
    """Yield the runs of true values of bool ``chosen``, cut to at most ``longest``: slices are views, lists copies."""
    start = None
    for i, value in enumerate([*chosen.tolist(), False]):
        if start is not None and (not value or i - start == longest):
            yield slice(start, i)
            start = None
        if value and start is None:
            start = i


def _rows(x: torch.Tensor, chunk: _Chunk) -> torch.Tensor:
    """Return the chunk's query rows ``(R, lists, rows per list, D)`` of ``x (B*H, tiles, width, D)``."""
    picked = x[chunk.rows].index_select(1, chunk.tiles)
    return picked.reshape(len(picked), len(chunk.ids), -1, x.shape[-1])


def _row_stats(x: torch.Tensor, chunk: _Chunk, spec: Spec) -> torch.Tensor:
    """Return ``x (B*H, S)`` at the chunk's query rows, ``(R, lists, rows per list, 1)``; 0 at dead rows, whose gradient
    is zero only as long as everything that it is multiplied with is finite."""
    index = spec.index[chunk.tiles].reshape(len(chunk.ids), -1, 1)
    return x[chunk.rows][:, index.clamp_min(0)].masked_fill_(index < 0, 0.0)


def _gather(x: torch.Tensor, chunk: _Chunk) -> torch.Tensor:
    """Return the key tiles of every list of the chunk, ``(R, lists, count * width, D)``."""
    picked = x[chunk.rows]
    lists, count = chunk.ids.shape
    if count < x.shape[1]:
        picked = picked.index_select(1, chunk.ids.reshape(-1))
    return picked.reshape(len(picked), lists, -1, x.shape[-1])


def _scatter(total: torch.Tensor, part: torch.Tensor, chunk: _Chunk) -> None:
    """Add ``part (R, lists, count * width, D)`` onto the key tiles of ``total (B*H, tiles, width, D)``."""
    _, _, width, dim = total.shape
    total[chunk.rows].index_add_(1, chunk.ids.reshape(-1), part.reshape(part.shape[0], -1, width, dim))


def _scores(
    queries: torch.Tensor, keys: torch.Tensor, chunk: _Chunk, spec: Spec, need_max: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return log2-scaled scores ``(R, lists, rows, keys)``, dead keys -inf, and the row maximum (fp8: an integer)."""
    scores = torch.matmul(queries, keys.transpose(-1, -2))
    dead = (spec.index < 0)[chunk.ids].flatten(1)
    if bool(dead.any()):
        scores.masked_fill_(dead[None, :, None, :], -math.inf)
    if not need_max:
        return scores, None
    maximum = scores.amax(-1, keepdim=True)
    return scores, maximum if spec.format == "none" else maximum.ceil()


def _targets(chunk: _Chunk, spec: Spec, heads: int) -> tuple[torch.Tensor, ...]:
    """Return the chunk's live slots and, broadcast against each other, their batch, head and token indices."""
    index = spec.index[chunk.tiles].reshape(-1)
    where = torch.nonzero(index >= 0).flatten()
    rows = torch.arange(chunk.rows.start, chunk.rows.stop, device=index.device)[:, None]
    return where, rows // heads, rows % heads, index[where][None, :]


def _live(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return the live rows ``(R, n, D)`` of ``x (R, lists, rows, D)``."""
    flat = x.flatten(1, 2)
    return flat if len(where) == flat.shape[1] else flat.index_select(1, where)


def _to_tokens(x: torch.Tensor, like: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Return tile-ordered ``x (B*H, tiles, width, D)`` as ``(B, S, H, D)`` in the dtype of ``like``."""
    batch, tokens, heads, dim = like.shape
    slot_of_token = torch.empty(tokens, dtype=torch.long, device=x.device)
    flat = spec.index.reshape(-1)
    live = torch.nonzero(flat >= 0).flatten()
    slot_of_token[flat[live]] = live
    tokens_first = x.view(batch, heads, -1, dim).permute(0, 2, 1, 3)
    return tokens_first.index_select(1, slot_of_token).to(like.dtype)
