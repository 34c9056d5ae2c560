"""What heads look at, from a sample of query rows: by distance in time and in space, and by key tile.

The maps that Sparse-vDiT (arXiv 2506.03065, section 4.1) sorts heads by are S x S; 192 of 75,600 rows say the same
about a head at 0.5 % of the work. Rows are whole: every sampled query attends to all keys, in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from ..grid import Tiling, TokenGrid

ROWS = 192
# What one chunk of rows may take at once, its temporaries included.
CHUNK_BYTES = 256 << 20
# Logits, probabilities, their product and the sums.
TEMPORARIES = 4
RING_STARTS = (0, 1, 2, 3, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257)


class EvidenceError(ValueError):
    """Tensors, rows or tiles that give no evidence; the message is one sentence."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the heads of one layer look at, float64 arrays ``(samples, heads, ...)`` of mean mass per query.

    Queries are video tokens, frames weigh the same. Attention to tokens outside the video is in ``tiles`` only, so that
    the other arrays sum to 1 or less. What has an axis ``2`` was measured on two disjoint halves of the rows: what is
    chosen on one can be judged on the other. ``space`` rings are Chebyshev distances max(|dh|, |dw|) in latent tokens,
    in bins that start at ``RING_STARTS`` (ring 0 is the same place). The ``area`` arrays are what uniform attention
    gives on the same rows.
    """

    grid: TokenGrid
    pieces: tuple[int, int, int]
    frames: np.ndarray  # (N, H, 2, t, t): from query frame to key frame, per query of that frame
    distance: np.ndarray  # (N, H, t, rings): by frame distance and ring
    down: np.ndarray  # (N, H, h): by |dh|
    across: np.ndarray  # (N, H, w): by |dw|
    tiles: np.ndarray  # (N, H, 2, tiles): column mass per key tile, extra tokens' tiles included
    entropy: np.ndarray  # (N, H): of a row, over that of uniform attention: 1 is uniform, 0 one key
    peak: np.ndarray  # (N, H): a row's largest probability
    power: np.ndarray  # (N, H): mean squared output, NaN without values
    area: np.ndarray  # (t, rings)
    area_down: np.ndarray  # (h,)
    area_across: np.ndarray  # (w,)
    area_tiles: np.ndarray  # (tiles,): the tile's share of all tokens

    @property
    def samples(self) -> int:
        """Samples (prompts) that were measured one by one."""
        return self.entropy.shape[0]

    @property
    def heads(self) -> int:
        """Heads of the layer."""
        return self.entropy.shape[1]

    @property
    def by_time(self) -> np.ndarray:
        """Mass by frame distance, ``(N, H, t)``."""
        return self.distance.sum(-1)

    @property
    def by_space(self) -> np.ndarray:
        """Mass by ring of distance in space, whatever the frame, ``(N, H, rings)``."""
        return self.distance.sum(-2)

    @property
    def same_place(self) -> np.ndarray:
        """Mass on the query's own place in other frames, ``(N, H)``."""
        return self.distance[..., 1:, 0].sum(-1)

    @property
    def columns(self) -> np.ndarray:
        """Column mass per key tile from all rows, ``(N, H, tiles)``."""
        return self.tiles.mean(2)

    @property
    def share(self) -> np.ndarray:
        """Each head's part of the layer's output power (before the output projection), ``(N, H)``; NaN without v."""
        total = self.power.sum(1, keepdims=True)
        return np.divide(self.power, total, out=np.where(np.isnan(self.power), np.nan, 0.0), where=total > 0)

    def mean(self) -> Evidence:
        """Return the mean over samples, as evidence of one sample."""
        return self._each(lambda array: array.mean(0, keepdims=True))

    def sample(self, index: int) -> Evidence:
        """Return one sample alone."""
        return self._each(lambda array: array[index : index + 1])

    def _each(self, change: Callable[[np.ndarray], np.ndarray]) -> Evidence:
        return replace(self, **{name: change(getattr(self, name)) for name in MEASURED})


AREAS = tuple(f.name for f in fields(Evidence) if f.name.startswith("area"))
MEASURED = tuple(f.name for f in fields(Evidence) if f.name not in ("grid", "pieces", *AREAS))


def running_mean(evidence: Evidence, more: Evidence, weight: float) -> Evidence:
    """Return ``evidence`` moved towards ``more`` by ``weight`` (1/n for the n-th of a running mean)."""
    if (evidence.grid, evidence.pieces, evidence.heads) != (more.grid, more.pieces, more.heads):
        raise EvidenceError(
            f"evidence on {more.grid.shape} in {more.pieces} tiles of {more.heads} heads cannot join evidence on "
            f"{evidence.grid.shape} in {evidence.pieces} of {evidence.heads}; gather it apart."
        )

    def moved(name: str) -> np.ndarray:
        old, new = getattr(evidence, name), getattr(more, name)
        return old + weight * (new - old)

    return replace(evidence, **{name: moved(name) for name in (*MEASURED, *AREAS)})


def sample_rows(tiling: Tiling, rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Return about ``rows`` video tokens to query with, ascending int64: as many in every frame, at least two.

    Within a frame they are spread over tiles: places in the order of their tiles are cut into as many equal strata,
    and each gives one, so that every token is equally likely. Other tokens see all in every pattern and are no rows.
    """
    grid = _checked(tiling)
    if rows < 1:
        raise EvidenceError(f"a sample has at least one row, got {rows}.")
    random = np.random.default_rng(seed)
    places = grid.h * grid.w
    each = max(2, min(round(rows / grid.t), places))
    order = np.argsort(tiling.tile_of_token[grid.prefix : grid.prefix + places], kind="stable")
    chosen = []
    for frame in range(grid.t):
        at = (np.arange(each) + random.random(each)) * places / each
        # Strata meet within a token, which both can draw.
        place = order[np.minimum(at.astype(np.int64), places - 1)]
        chosen.append(grid.prefix + frame * places + np.sort(place))
    return np.concatenate(chosen)


def evidence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    tiling: Tiling,
    rows: Sequence[int] | np.ndarray | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Evidence:
    """Return what the heads of one layer look at.

    q, k, v are ``(S, H, D)`` or ``(B, S, H, D)`` as attention gets them, on any device in any float type; batch entries
    stay apart as samples. ``rows`` are the queries (``sample_rows`` of the tiling if None). Only sums leave the device,
    and at most about ``chunk_bytes`` are taken there. Raises EvidenceError for shapes, rows or tilings that do not fit.
    """
    grid = _checked(tiling)
    q, k, v = (None if x is None else x.detach() if x.ndim == 4 else x.detach()[None] for x in (q, k, v))
    _check_tensors(q, k, v, grid)
    row = _checked_rows(sample_rows(tiling) if rows is None else np.asarray(rows), grid)
    geometry = _Geometry.of(tiling, row)
    batch, tokens, heads, _ = q.shape

    sums: dict[str, np.ndarray] = {}
    for b in range(batch):
        for head, part in _chunks(heads, len(row), tokens, chunk_bytes):
            one = _measure(q[b, :, head], k[b, :, head], None if v is None else v[b, :, head], geometry, part)
            for name, value in one.items():
                total = sums.setdefault(name, np.zeros((batch, heads, *value.shape[1:])))
                total[b, head] += value
    t, _, _ = grid.shape
    frames = sums.pop("frames").reshape(batch, heads, t, 2, t).swapaxes(2, 3)
    if v is None:
        sums["power"] = np.full((batch, heads), np.nan)
    sums["entropy"] /= max(math.log(tokens), 1e-9)
    return Evidence(grid, tiling.pieces, frames=np.ascontiguousarray(frames), **sums, **geometry.areas())


@dataclass(frozen=True)
class _Geometry:
    """Where rows and keys are: one-hot matrices of the rows (all on the host), and what each row counts."""

    tiling: Tiling
    rows: np.ndarray
    weight: np.ndarray  # (rows,): frames weigh the same, all sum to 1
    halves: np.ndarray  # (2, rows): the weight within a half, each sums to 1
    groups: np.ndarray  # (2t, rows): the weight within a frame's half, each sums to 1
    time: np.ndarray  # (rows, t): frame distance
    ring: np.ndarray  # (rows, h * w)
    down: np.ndarray  # (rows, h)
    across: np.ndarray  # (rows, w)

    @staticmethod
    def of(tiling: Tiling, rows: np.ndarray) -> _Geometry:
        """Return where ``rows`` (ascending tokens) are."""
        grid = tiling.grid
        t, h, w = np.unravel_index(rows - grid.prefix, grid.shape)
        # Alternate rows of a frame: both halves hold every frame.
        rank = np.arange(len(rows)) - np.searchsorted(t, t)
        group = 2 * t + rank % 2
        groups = (group == np.arange(2 * grid.t)[:, None]).astype(np.float64)
        groups /= groups.sum(1, keepdims=True)
        halves = np.stack([groups[0::2].mean(0), groups[1::2].mean(0)])
        weight = 1.0 / (grid.t * np.bincount(t, minlength=grid.t)[t])
        down, across = (np.abs(x[:, None] - np.arange(n)) for x, n in ((h, grid.h), (w, grid.w)))
        far = np.maximum(down[:, :, None], across[:, None, :]).reshape(len(rows), -1)
        ring = np.searchsorted(ring_starts(grid), far, side="right") - 1
        time = np.abs(t[:, None] - np.arange(grid.t))
        return _Geometry(tiling, rows, weight, halves, groups, time, ring, down, across)

    def areas(self) -> dict[str, np.ndarray]:
        """Return what uniform attention over the video gives on these rows."""
        grid = self.tiling.grid

        def shares(values: np.ndarray, bins: int) -> np.ndarray:
            return (values[:, :, None] == np.arange(bins)).mean(1)

        time, ring = shares(self.time, grid.t), shares(self.ring, len(ring_starts(grid)))
        return {
            "area": np.einsum("r,rt,rn->tn", self.weight, time, ring),
            "area_down": self.weight @ shares(self.down, grid.h),
            "area_across": self.weight @ shares(self.across, grid.w),
            "area_tiles": self.tiling.live / grid.tokens,
        }


def ring_starts(grid: TokenGrid) -> np.ndarray:
    """Return the smallest distance of every ring that ``grid`` has."""
    return np.array([start for start in RING_STARTS if start < max(grid.h, grid.w)])


def _chunks(heads: int, rows: int, tokens: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of heads and of rows whose logits fit into ``limit`` bytes."""
    row_bytes = 4 * TEMPORARIES * tokens
    few = max(1, min(rows, limit // row_bytes))
    many = max(1, min(heads, limit // (row_bytes * rows))) if few == rows else 1
    for head in range(0, heads, many):
        for row in range(0, rows, few):
            yield slice(head, min(head + many, heads)), slice(row, min(row + few, rows))


def _measure(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, geometry: _Geometry, part: slice
) -> dict[str, np.ndarray]:
    """Return what some rows add to every sum of some heads; q, k, v are ``(S, heads, D)``."""
    tiling, grid, device = geometry.tiling, geometry.tiling.grid, q.device

    def there(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(device)

    def one_hot(values: np.ndarray, bins: int) -> torch.Tensor:
        """Return ``(rows, keys, bins)``: sums as products give the same in every run, on every device."""
        return (torch.from_numpy(values[part]).to(device)[..., None] == torch.arange(bins, device=device)).float()

    rows = torch.from_numpy(geometry.rows[part]).to(device)
    query, key = q[rows].float().transpose(0, 1), k.float().permute(1, 2, 0)
    logits = (query @ key).mul_(1.0 / math.sqrt(q.shape[-1]))
    p = torch.softmax(logits, -1)
    weight = there(geometry.weight[part])
    out = {
        "entropy": (torch.logsumexp(logits, -1) - (p * logits).sum(-1)) @ weight,
        "peak": p.amax(-1) @ weight,
    }
    del logits
    if v is not None:
        out["power"] = (p @ v.float().transpose(0, 1)).square().mean(-1) @ weight

    columns = there(geometry.halves[:, part]) @ p
    index = torch.from_numpy(tiling.index).to(device)
    out["tiles"] = (columns[..., index.clamp_min(0)] * (index >= 0)).sum(-1)

    t, h, w = grid.shape
    video = p[..., grid.prefix : grid.prefix + grid.video].unflatten(-1, (t, h * w))
    out["frames"] = there(geometry.groups[:, part]) @ video.sum(-1)
    rings = len(ring_starts(grid))
    by_ring = torch.einsum("grtp,rpn->grtn", video, one_hot(geometry.ring, rings))
    out["distance"] = torch.einsum("grtn,rtd,r->gdn", by_ring, one_hot(geometry.time, t), weight)
    places = video.sum(-2).unflatten(-1, (h, w))
    out["down"] = torch.einsum("grh,rhd,r->gd", places.sum(-1), one_hot(geometry.down, h), weight)
    out["across"] = torch.einsum("grw,rwd,r->gd", places.sum(-2), one_hot(geometry.across, w), weight)
    return {name: value.double().cpu().numpy() for name, value in out.items()}


def _checked(tiling: Tiling) -> TokenGrid:
    if tiling.runs:
        raise EvidenceError("plain runs of tokens are no tiles of a video; give the tiling of choose_tiling.")
    return tiling.grid


def _check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, grid: TokenGrid) -> None:
    if q.ndim != 4 or k.shape != q.shape or (v is not None and v.shape[:3] != q.shape[:3]):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v) if x is not None)
        raise EvidenceError(f"q, k and v need one shape (S, H, D) or (B, S, H, D), got {shapes}.")
    if q.shape[1] != grid.tokens:
        raise EvidenceError(f"the tiling has {grid.tokens} tokens, q has {q.shape[1]}; give the tiling of this video.")


def _checked_rows(rows: np.ndarray, grid: TokenGrid) -> np.ndarray:
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
        raise EvidenceError("rows are a list of token numbers; take those of sample_rows.")
    rows = np.sort(rows.astype(np.int64))
    if rows[0] < grid.prefix or rows[-1] >= grid.prefix + grid.video:
        raise EvidenceError(
            f"rows are video tokens {grid.prefix} to {grid.prefix + grid.video - 1}, got {rows[0]} to {rows[-1]}."
        )
    per_frame = np.bincount((rows - grid.prefix) // (grid.h * grid.w), minlength=grid.t)
    if per_frame.min() < 2:
        raise EvidenceError(
            f"every frame needs two rows, frame {int(per_frame.argmin())} has {int(per_frame.min())}; "
            "take the rows of sample_rows."
        )
    return rows
