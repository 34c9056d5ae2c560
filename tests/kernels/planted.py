"""Heads whose attention is known because it was planted: through q·k alone, nothing is masked.

Queries and keys carry codes of their place: per axis cosines and sines of a few frequencies, whose dot product is a
bump at distance 0. Codes of time alone make a diagonal, of height and width a multi-diagonal, of all three a window; a
direction that only chosen keys have makes a stripe. The rest of the head's width is noise, new for every prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from fpsattention.kernels.grid import Tiling, TokenGrid, choose_tiling

# What can be planted, and the family (of ``pattern_text.FAMILIES``) that it is to be found as.
TRUTH = {
    "diagonal": "diagonal",
    "multi-diagonal": "multi-diagonal",
    "window": "window",
    "vertical stripe": "vertical stripe",
    "first frame": "vertical stripe",
    "full": "full",
    "skip": "skip",
}
AXES = {"diagonal": (0,), "multi-diagonal": (1, 2), "window": (0, 1, 2), "same row": (1,), "same column": (2,)}
NOISE_DIMS = 8
STRIPE_SHARE = 0.08
DEAD = 1e-3


def stripe_tiles(tiling: Tiling, seed: int) -> tuple[int, ...]:
    """Return the video tiles (raster order) that a planted "vertical stripe" of ``seed`` looks at, about 8 %."""
    count = max(1, round(STRIPE_SHARE * tiling.video_tiles))
    chosen = np.random.default_rng((seed, 77)).choice(tiling.video_tiles, count, replace=False)
    return tuple(sorted(chosen.tolist()))


def planted(
    grid: TokenGrid,
    family: str,
    seed: int,
    *,
    dim: int = 64,
    gain: float = 8.0,
    noise: float = 0.5,
    prompt: int = 0,
    reach: float = 0.6,
    tiling: Tiling | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return one head's q, k, v, float32 ``(S, dim)``.

    ``family`` is one of ``TRUTH``, or "same row" or "same column" (bands, which are multi-diagonals); a "skip" head
    attends by some other pattern and its values are a thousandth of the others'. ``gain`` is the height of the bump per
    axis (and of a stripe) in the logits q·k/sqrt(dim), ``noise`` their standard deviation without it, ``reach`` the
    bump's width along time in tokens (as narrow as the frequencies allow in space). ``seed`` is the head, ``prompt``
    the content: it draws noise and values anew, not the pattern. Codes need width: at ``dim`` 64 bumps are sharp, below
    32 they are not.
    """
    if family not in TRUTH and family not in AXES:
        raise ValueError(f"cannot plant {family!r}; choose one of {', '.join({**TRUTH, **AXES})}.")
    structure = np.random.default_rng((seed, 1))
    content = np.random.default_rng((seed, 2, prompt))
    shown = structure.choice([name for name in TRUTH if name != "skip"]) if family == "skip" else family

    q, k = np.zeros((grid.tokens, dim)), np.zeros((grid.tokens, dim))
    video = slice(grid.prefix, grid.prefix + grid.video)
    places = np.stack(np.unravel_index(np.arange(grid.video), grid.shape))
    each = (dim - NOISE_DIMS - 1) // 6
    for axis in AXES.get(shown, ()):
        code = _code(places[axis], grid.shape[axis], each, reach)
        start = 2 * each * axis
        q[video, start : start + code.shape[1]] = gain * code
        k[video, start : start + code.shape[1]] = code
    if shown in ("vertical stripe", "first frame"):
        q[:, 6 * each] = gain
        k[video, 6 * each] = places[0] == 0
        if shown == "vertical stripe":
            tiling = tiling or choose_tiling(grid)
            chosen = tiling.prefix_tiles + np.array(stripe_tiles(tiling, seed))
            k[:, 6 * each] = np.isin(tiling.tile_of_token, chosen)
    # What is left of the width is noise: logits of standard deviation ``noise``.
    width = dim - 6 * each - 1
    q[:, -width:] = noise * content.standard_normal((grid.tokens, width)) / math.sqrt(width)
    k[:, -width:] = content.standard_normal((grid.tokens, width))

    # Values say which frame and which place they are of, so that a wrong pattern gives another output.
    v = content.standard_normal(dim) + 0.5 * content.standard_normal((grid.tokens, dim))
    frames, spots = content.standard_normal((grid.t, dim)), content.standard_normal((grid.h * grid.w, dim))
    v[video] += frames[places[0]] + spots[places[1] * grid.w + places[2]]
    if family == "skip":
        v *= DEAD
    # One rotation of q and k hides the codes from anything but q·k.
    turn = np.linalg.qr(structure.standard_normal((dim, dim)))[0]
    q, k = q @ turn * math.sqrt(dim), k @ turn
    return tuple(torch.from_numpy(x).float() for x in (q, k, v))


def planted_layer(
    grid: TokenGrid, families: Sequence[str], seed: int, *, batch: int = 1, prompt: int = 0, **settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a layer's q, k, v, float32 ``(batch, S, len(families), dim)``: head i is ``planted(families[i])`` with
    the seed ``1000 * seed + i``, sample b its content ``prompt + b``."""
    samples = [
        [planted(grid, name, 1000 * seed + i, prompt=prompt + b, **settings) for i, name in enumerate(families)]
        for b in range(batch)
    ]
    return tuple(torch.stack([torch.stack([h[n] for h in heads], 1) for heads in samples]) for n in range(3))


def _code(place: np.ndarray, length: int, frequencies: int, reach: float) -> np.ndarray:
    """Return codes ``(len(place), 2 m)`` with code(a)·code(b) = 1 at a = b, falling to about 0 beyond ``reach``."""
    # Multiples of half a turn per axis: its two ends do not look like neighbors.
    omega = math.pi * np.arange(1, min(frequencies, length) + 1) / length
    weight = np.exp(-((omega * reach) ** 2) / 2)
    phase = place[:, None] * omega
    share = np.sqrt(weight / weight.sum())
    return np.concatenate([share * np.cos(phase), share * np.sin(phase)], 1)
