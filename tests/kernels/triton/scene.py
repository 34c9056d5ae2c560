"""Random tiles, lists and tensors for the kernel tests, and what attention must give on them.

Independent of the pack's own grids, plans and quantizers: tiles are random permutations of the tokens, and the oracle
is softmax in float64 under a dense boolean mask.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from fpsattention.kernels.attention.spec import Spec

LARGEST = {"e4m3": 448.0, "int8": 127.0}


def layout(live: list[int], width: int, seed: int = 0) -> SimpleNamespace:
    """Return tiles of ``live`` tokens each, ``width`` slots wide; which token is where is random."""
    order = torch.randperm(sum(live), generator=torch.Generator().manual_seed(seed)).split(live)
    index = torch.full((len(live), width), -1, dtype=torch.int32)
    for tile, tokens in enumerate(order):
        index[tile, : len(tokens)] = tokens
    return SimpleNamespace(index=index, live=torch.tensor(live, dtype=torch.int32), tokens=sum(live))


def lists(patterns: list[list[list[int]]], pattern_of_head: list[list[int]]) -> SimpleNamespace:
    """Return the lists tensors of ``patterns[pattern][query tile] = [key tiles]``; unused places hold a wrong id."""
    longest = max(len(row) for pattern in patterns for row in pattern)
    ids = torch.full((len(patterns), len(patterns[0]), max(1, longest)), 2**30, dtype=torch.int32)
    for p, pattern in enumerate(patterns):
        for i, row in enumerate(pattern):
            ids[p, i, : len(row)] = torch.tensor(row, dtype=torch.int32)
    count = torch.tensor([[len(row) for row in pattern] for pattern in patterns], dtype=torch.int32)
    heads = torch.tensor(pattern_of_head, dtype=torch.int32)
    return SimpleNamespace(ids=ids, count=count, pattern_of_head=heads, patterns=patterns)


def full(tiles: int) -> list[list[int]]:
    """Return the pattern in which every tile sees every tile."""
    return [list(range(tiles)) for _ in range(tiles)]


def band(tiles: int, reach: int) -> list[list[int]]:
    """Return the pattern in which a tile sees its ``reach`` neighbors on both sides."""
    return [list(range(max(0, i - reach), min(tiles, i + reach + 1))) for i in range(tiles)]


def tensors(batch: int, tokens: int, heads: int, dim: int, dtype=torch.bfloat16, seed: int = 1):
    """Return q, k, v ``(B, S, H, D)`` from N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, tokens, heads, dim, generator=generator).to(dtype) for _ in range(3)]


def masks(lay: SimpleNamespace, lsts: SimpleNamespace, batch: int, heads: int) -> torch.Tensor:
    """Return what every query may see, bool ``(B, H, S, S)``, in token order."""
    tokens_of = [lay.index[i, : lay.live[i]].long() for i in range(len(lay.live))]
    visible = torch.zeros(batch, heads, lay.tokens, lay.tokens, dtype=torch.bool)
    rows = lsts.pattern_of_head.expand(batch, heads)
    for b in range(batch):
        for h in range(heads):
            for i, row in enumerate(lsts.patterns[int(rows[b, h])]):
                for j in row:
                    visible[b, h, tokens_of[i][:, None], tokens_of[j][None, :]] = True
    return visible


def attention(q, k, v, visible, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return exact ``out (B, S, H, D)`` and ``lse (B, H, S)`` in log2 units; a row that sees nothing: 0, -inf."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~visible, -math.inf)
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    return (weights @ v).transpose(1, 2), torch.logsumexp(scores, -1) / math.log(2.0)


def spec(lay: SimpleNamespace, lsts: SimpleNamespace, form: str = "none", per_token: bool = False) -> Spec:
    """Return what the launcher takes. The transposed lists and the cubes are not read by a forward on codes."""
    live = lay.live.tolist()
    same = len(set(live[:-1] or live)) == 1
    unused = torch.zeros(1, 1, 1, dtype=torch.int32)
    granularity = None if form == "none" else "token" if per_token else "x1"
    return Spec(
        lay.index.long(), lay.live, unused, lsts.ids, lsts.count, lsts.pattern_of_head, unused, unused,
        1, live[0] if same else 0, live[-1], granularity, False, form,
    )  # fmt: skip


def in_v_order(x: torch.Tensor) -> torch.Tensor:
    """Return ``x (..., slots)`` with slot 8b + 2c + e of every 16 at place 4c + 2b + e."""
    return x.view(torch.uint8).unflatten(-1, (-1, 2, 4, 2)).transpose(-2, -3).flatten(-4).contiguous().view(x.dtype)


def quantize(lay: SimpleNamespace, q, k, v, slots: int, per_token: bool, form: str = "e4m3") -> SimpleNamespace:
    """Return codes and scales as a forward takes them, and the same numbers dequantized in token order."""
    batch, tokens, heads, dim = q.shape
    tiles = len(lay.live)
    index = torch.full((tiles, slots), -1, dtype=torch.long)
    index[:, : lay.index.shape[1]] = lay.index
    dead = (index < 0).flatten()
    flat = index.flatten().clamp(min=0)

    def tiled(x: torch.Tensor) -> torch.Tensor:
        return x.float()[:, flat].masked_fill(dead[None, :, None, None], 0.0).transpose(1, 2)

    def largest(x: torch.Tensor, *axes: int) -> torch.Tensor:
        return (x.abs().amax(axes) / LARGEST[form]).clamp(min=1e-12)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.round().to(torch.int8) if form == "int8" else x.to(torch.float8_e4m3fn)

    result = SimpleNamespace(slots=slots)
    for name, x in (("q", q), ("k", k)):
        rows = tiled(x)
        if per_token:
            scale = each = largest(rows, -1)
        else:
            scale = largest(rows.unflatten(2, (tiles, slots)), -1, -2)
            each = scale.repeat_interleave(slots, 2)
        codes = rounded(rows / each[..., None]).contiguous()
        back = torch.zeros(batch, heads, tokens, dim)
        back[:, :, flat[~dead]] = (codes.float() * each[..., None])[:, :, ~dead]
        setattr(result, name, codes)
        setattr(result, f"{name}_scale", scale)
        setattr(result, f"{name}_back", back.transpose(1, 2))
    if form == "int8":
        result.v, result.v_scale, result.v_back = None, None, v
        return result
    rows = tiled(v)
    result.v_scale = largest(rows, 2)
    codes = (rows / result.v_scale[:, :, None]).to(torch.float8_e4m3fn)
    back = torch.zeros(batch, heads, tokens, dim)
    back[:, :, flat[~dead]] = (codes.float() * result.v_scale[:, :, None])[:, :, ~dead]
    result.v, result.v_back = in_v_order(codes.transpose(2, 3).contiguous()), back.transpose(1, 2)
    return result


def quantized_attention(q, k, v, visible, scale: float):
    """Return ``out``, ``lse`` and ``rowmax`` of the FP8 rule on dequantized q, k, v, in float64.

    The maximum is rounded up to an integer in log2, weights are rounded to e4m3 at 2**8, and a row is divided by the
    sum of its rounded weights.
    """
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(2, 3) * (scale * math.log2(math.e))).masked_fill(~visible, -math.inf)
    rowmax = scores.amax(-1).ceil().nan_to_num(neginf=0.0)  # 0 where nothing is seen
    weights = torch.exp2(scores - rowmax[..., None] + 8.0)
    weights = weights.float().to(torch.float8_e4m3fn).double()
    total = weights.sum(-1)
    out = (weights @ v / total.clamp(min=1e-300)[..., None]).transpose(1, 2)
    return out, rowmax - 8.0 + total.log2(), rowmax


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative L2 error."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
