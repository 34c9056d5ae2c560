"""FP8 e4m3 quantization of Q, K and V in tile order.

Scales are ``abs-max / 448`` in float32 over live tokens, ``x ~ q * scale`` (FPSAttention equations 1 and 4 write the
scale on opposite sides; this is the consistent reading). Q and K share a scale per token, or per cube of N x N x N
tiles (granularity xN); V has one per channel over the whole sequence. K may be smoothed first: its mean over tokens
shifts every score of a row equally, so softmax does not see it, and the rest needs less range.
"""

from __future__ import annotations

import torch

E4M3_MAX = 448.0
# The largest code of Q and K: e4m3's, or that of a symmetric 8-bit integer.
LARGEST = {"e4m3": E4M3_MAX, "int8": 127.0}
# A smaller scale of Q or K counts as 1 (all its codes are 0). The product of two scales is then never so small that a
# dead key's score, a large negative number times that product, comes near a live one's.
SMALLEST_SCALE = 1e-12
# Transposed V keeps the slots of every 16 in this order: column i holds slot V_ORDER[i]. The forward's weights lie in
# the tensor core's order of results, in which a thread has four neighbors of this order, so they need no shuffle.
V_ORDER = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
_SPLIT = 2.0**20 + 1.0
_SUBNORMAL = 1.5 * 2.0**14
_SMALLEST_NORMAL = 2.0**-6


def round_e4m3_(x: torch.Tensor) -> torch.Tensor:
    """Round float32 ``x`` with magnitudes up to 448 to e4m3 values in place and return it.

    Same values as ``x.to(torch.float8_e4m3fn).float()``, to nearest even, subnormals and NaN included, but in float32
    arithmetic: torch's CPU conversion back from FP8 costs about four times as much.
    """
    if x.device.type != "cpu":
        return x.copy_(x.to(torch.float8_e4m3fn))
    # Veltkamp's split keeps the upper 4 of 24 significand bits; adding and subtracting 1.5 * 2^14 keeps multiples of
    # 2^-9, the spacing of subnormals.
    upper = x * _SPLIT
    upper -= upper - x
    small = x.abs() < _SMALLEST_NORMAL
    lower = (x + _SUBNORMAL).sub_(_SUBNORMAL)
    return torch.where(small, lower, upper, out=x)


def to_tiles(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return float32 ``(B, H, tiles, width, D)`` of ``x (B, S, H, D)`` by ``index (tiles, width)``; dead rows are 0."""
    tiles, width = index.shape
    batch, _, heads, dim = x.shape
    picked = x.permute(0, 2, 1, 3).index_select(2, index.clamp_min(0).reshape(-1)).float()
    picked = picked.reshape(batch, heads, tiles, width, dim)
    dead = index < 0
    # Reading one flag from a GPU would wait for it; a CPU saves a pass over everything.
    if x.device.type != "cpu" or bool(dead.any()):
        picked.masked_fill_(dead[None, None, :, :, None], 0.0)
    return picked


def token_mean(k: torch.Tensor) -> torch.Tensor:
    """Return K's mean over tokens, float32 ``(B, H, 1, 1, D)``, of ``k (B, S, H, D)``; 0 where it is not finite.

    Any shift leaves softmax as it is, so one broken token need not spread to every other through the mean.
    """
    return k.mean(1, dtype=torch.float32).nan_to_num_(0.0, 0.0, 0.0)[:, :, None, None, :]


def group_scales(x: torch.Tensor, granularity: str, cube: torch.Tensor, cubes: int, form: str = "e4m3") -> torch.Tensor:
    """Return Q's or K's scales for ``x (B, H, tiles, width, D)``: ``(B, H, tiles, width, 1)`` for 'token', else
    ``(B, H, tiles, 1, 1)``, equal within a cube. Groups of zeros (or nearly) get scale 1."""
    if granularity == "token":
        amax = _largest(x, (-1,), keepdim=True)
    else:
        per_tile = _largest(x, (-2, -1))
        shape = (*per_tile.shape[:2], cubes)
        target = cube.expand_as(per_tile)
        per_cube = per_tile.new_zeros(shape).scatter_reduce(2, target, per_tile, "amax")
        amax = per_cube.gather(2, target)[..., None, None]
    return _scale(amax, LARGEST[form], SMALLEST_SCALE)


def channel_scales(v: torch.Tensor) -> torch.Tensor:
    """Return V's scales ``(B, H, 1, 1, D)`` for ``v (B, H, tiles, width, D)``, over all tokens."""
    return _scale(_largest(v, (2, 3), keepdim=True), E4M3_MAX, 0.0)


def _largest(x: torch.Tensor, dims: tuple[int, ...], keepdim: bool = False) -> torch.Tensor:
    """Return the largest finite ``|x|``: one broken number must not spoil the scale of all that share it."""
    largest = torch.linalg.vector_norm(x, ord=float("inf"), dim=dims, keepdim=keepdim)
    # Reading one flag from a GPU would wait for it; a CPU saves a pass over everything.
    if x.device.type == "cpu" and bool(largest.isfinite().all()):
        return largest
    finite = x.where(x.isfinite(), torch.zeros((), dtype=x.dtype, device=x.device))
    return torch.linalg.vector_norm(finite, ord=float("inf"), dim=dims, keepdim=keepdim)


def _scale(amax: torch.Tensor, largest: float, smallest: float) -> torch.Tensor:
    # By a tensor: a GPU multiplies by the reciprocal of a plain number, which rounds twice.
    scale = amax / torch.full_like(amax, largest)
    # Nothing but zeros, or nearly.
    return torch.where(scale > smallest, scale, torch.ones_like(scale))


def fake_quantize_(x: torch.Tensor, scale: torch.Tensor, form: str = "e4m3") -> torch.Tensor:
    """Replace ``x (B, H, ...)`` by ``round(x / scale) * scale`` and return it; ``form`` is 'e4m3' or 'int8'."""
    x *= 1.0 / scale
    # The quotient of the maximum itself may round to just above the largest.
    x.clamp_(-LARGEST[form], LARGEST[form])
    if form == "int8":
        return x.round_().mul_(scale)
    # By head, for small temporaries; views, so that strides do not matter.
    for sample in x:
        for part in sample:
            round_e4m3_(part)
    return x.mul_(scale)


def true_quantize(x: torch.Tensor, scale: torch.Tensor, form: str = "e4m3") -> torch.Tensor:
    """Return ``round(x / scale)`` as ``float8_e4m3fn`` or ``int8``; ``fake_quantize_`` holds these times scale."""
    codes = (x * (1.0 / scale)).clamp_(-LARGEST[form], LARGEST[form])
    return codes.round_().to(torch.int8) if form == "int8" else codes.to(torch.float8_e4m3fn)


def quantize_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    *,
    granularity: str,
    cube: torch.Tensor,
    cubes: int,
    smooth_k: bool,
    form: str = "e4m3",
) -> tuple[torch.Tensor | None, ...]:
    """Return what an 8-bit kernel reads of ``q, k, v (B, S, H, D)`` by ``index (tiles, slots)``, slots in sixteens.

    ``q, k (B, H, tiles*slots, D)`` and ``v (B, H, D, tiles*slots)``, columns in ``V_ORDER``, as codes with dead rows 0;
    the scales of q and k (``(B, H, tiles*slots)`` for 'token', else ``(B, H, tiles)``) and of v ``(B, H, D)``. With the
    form 'int8' v is used as it is, so its codes and scales are None.
    """
    qt, kt = (to_tiles(x, index) for x in (q, k))
    if smooth_k:
        kt -= token_mean(k)
        kt.masked_fill_((index < 0)[None, None, :, :, None], 0.0)
    scales = [group_scales(x, granularity, cube, cubes, form) for x in (qt, kt)]
    codes = [true_quantize(x, s, form).flatten(2, 3) for x, s in zip((qt, kt), scales)]
    flat = [s.reshape(*s.shape[:2], -1) for s in scales]
    if form == "int8":
        return *codes, None, *flat, None
    vt = to_tiles(v, index)
    v_scale = channel_scales(vt)
    groups = true_quantize(vt, v_scale).flatten(2, 3).transpose(-1, -2).unflatten(-1, (-1, 16))
    # Indexing by 8-bit floats is not everywhere; their bits are.
    v8 = groups.view(torch.uint8)[..., list(V_ORDER)].flatten(-2).view(groups.dtype)
    return *codes, v8, *flat, v_scale.reshape(*v_scale.shape[:2], -1)
