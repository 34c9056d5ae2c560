"""What the online selectors must choose, written from their definitions: loops over heads, tiles and tokens, float64.

Only a tiling's public description is read: its pieces, their bounds and the tiles outside the video.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def tiles_of(tiling) -> list[list[int]]:
    """Return the tokens of every tile, by looking up where each token's frame, row and column fall."""
    grid, members = tiling.grid, [[] for _ in range(tiling.count)]
    inside = [[] for _ in range(tiling.video_tiles)]
    for token in range(grid.video):
        frame, rest = divmod(token, grid.h * grid.w)
        place = (frame, *divmod(rest, grid.w))
        piece = [max(i for i, b in enumerate(bounds[:-1]) if b <= x) for bounds, x in zip(tiling.bounds, place)]
        inside[(piece[0] * tiling.pieces[1] + piece[1]) * tiling.pieces[2] + piece[2]].append(grid.prefix + token)
    for row, tokens in zip(tiling.index, members):
        tokens.extend(int(t) for t in row if t >= 0)
    for i, tokens in enumerate(inside):
        assert members[tiling.prefix_tiles + i] == sorted(tokens)
    return members


def outside(tiling) -> set[int]:
    """Return the tiles outside the video."""
    last = tiling.prefix_tiles + tiling.video_tiles
    return set(range(tiling.prefix_tiles)) | set(range(last, tiling.count))


def window_mask(tiling, window: tuple[int, int, int], first: bool = False) -> np.ndarray:
    """Return which tile sees which under a window of tiles along (t, h, w), with the ``first`` frames' tiles or not."""
    mask = np.zeros((tiling.count, tiling.count), bool)
    extra, offset = outside(tiling), tiling.prefix_tiles
    places = list(itertools.product(*(range(n) for n in tiling.pieces)))
    for i, j in itertools.product(range(tiling.count), repeat=2):
        if i in extra or j in extra:
            mask[i, j] = True
            continue
        seen = True
        for a, b, n, k in zip(places[i - offset], places[j - offset], tiling.pieces, window):
            start = min(max(a - k // 2, 0), n - k)
            seen = seen and start <= b < start + k
        mask[i, j] = seen or (first and places[j - offset][0] == 0)
    return mask


def pair_share(mask: np.ndarray, tiling) -> float:
    """Return the share of token pairs under a mask of tiles."""
    sizes, pairs = [len(tokens) for tokens in tiles_of(tiling)], 0
    for i, j in zip(*np.nonzero(mask)):
        pairs += sizes[i] * sizes[j]
    return pairs / tiling.grid.tokens**2


def svg_windows(tiling, density: float) -> tuple[list[tuple[int, int, int]], bool]:
    """Return SVG's spatial and temporal window in tiles, and whether both are united with the first frames."""
    nt, nh, nw = tiling.pieces
    first_alone = np.zeros((tiling.count, tiling.count), bool)
    for j in range(tiling.count):
        first_alone[:, j] = j - tiling.prefix_tiles in range(nh * nw)
    for i in outside(tiling):
        first_alone[i, :] = first_alone[:, i] = True
    first = pair_share(first_alone, tiling) <= density / 2
    found = []
    for kind in ("spatial", "temporal"):
        best, rows = None, []
        for window in itertools.product(range(1, nt + 1), range(1, nh + 1), range(1, nw + 1)):
            whole = window[1:] == (nh, nw)
            if window[0] == nt if kind == "temporal" else window[0] == 1 or whole:
                gap = abs(pair_share(window_mask(tiling, window, first), tiling) - density)
                shape = abs(math.log((window[1] / nh) / (window[2] / nw)))
                rows.append((gap, shape, window))
        least = min(gap for gap, _, _ in rows)
        for gap, shape, window in rows:
            if gap <= max(least, 0.05 * density) + 1e-12:
                key = (round(shape, 9), round(gap, 12), window)
                best = key if best is None or key < best else best
        found.append(best[2])
    return found, first


def sta_windows(tiling) -> list[tuple[int, int, int]]:
    """Return STA's windows for Wan on a tiling, in tiles."""
    published = [(3, 1, 10), (1, 5, 7), (3, 3, 3), (1, 6, 5), (1, 3, 10), (3, 6, 1)]
    return [
        tuple(max(1, math.floor(k / of * n + 0.5 + 1e-9)) for k, n, of in zip(window, tiling.pieces, (3, 6, 10)))
        for window in published
    ]


def row_outputs(q, k, v, rows, seen_tokens) -> np.ndarray:
    """Return the outputs of one head's query ``rows``, each over the keys in ``seen_tokens[row]``."""
    out = []
    for row in rows:
        keys = seen_tokens[row]
        scores = k[keys] @ q[row] / math.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        out.append(weights @ v[keys] / weights.sum())
    return np.array(out)


def pattern_errors(q, k, v, tiling, masks, rows) -> np.ndarray:
    """Return ``(P, B, H)``: the mean square between the rows' outputs under each mask and over all keys."""
    q, k, v = (x.double().numpy() for x in (q, k, v))
    tiles = tiles_of(tiling)
    home = {token: i for i, tokens in enumerate(tiles) for token in tokens}
    batch, tokens, heads, _ = q.shape
    result = np.zeros((len(masks), batch, heads))
    everything = {row: np.arange(tokens) for row in rows}
    seen = [
        {row: np.array(sorted(t for j in np.flatnonzero(mask[home[row]]) for t in tiles[j])) for row in rows}
        for mask in masks
    ]
    for b, h in itertools.product(range(batch), range(heads)):
        head = [x[b, :, h] for x in (q, k, v)]
        full = row_outputs(*head, rows, everything)
        for p in range(len(masks)):
            result[p, b, h] = ((row_outputs(*head, rows, seen[p]) - full) ** 2).mean()
    return result


def similarity(rows: np.ndarray) -> float:
    """Return the mean cosine over all pairs of rows, a row with itself included."""
    total = 0.0
    for a in rows:
        for b in rows:
            total += float(a @ b) / max(1e-30, math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))
    return total / len(rows) ** 2


def top_mask(q, k, tiling, kind: str, share: float, gate: float | None) -> tuple[np.ndarray, float]:
    """Return one head's mask for ``topk`` or ``cdf`` from ``q, k (S, D)``, and how near any choice came to another
    (in log mass, mass or cosine)."""
    tiles, extra = tiles_of(tiling), outside(tiling)
    video = [i for i in range(tiling.count) if i not in extra]
    margin = math.inf
    shifted = k - k.mean(0)
    gated_q, gated_k = set(), set()
    if gate is not None:
        for x, gated in ((q, gated_q), (shifted, gated_k)):
            for i in video:
                value = similarity(x[tiles[i]])
                margin = min(margin, abs(value - gate))
                if value <= gate:
                    gated.add(i)
    mask = np.zeros((tiling.count, tiling.count), bool)
    for i in range(tiling.count):
        if i in extra or i in gated_q:
            mask[i, :] = True
            continue
        mask[i, sorted(extra | gated_k)] = True
        free = [j for j in video if j not in gated_k]
        if not free:
            continue
        mean = q[tiles[i]].mean(0)
        scale = math.sqrt(q.shape[1])
        score = {j: mean @ k[tiles[j]].mean(0) / scale + math.log(len(tiles[j])) for j in free}
        order = sorted(free, key=lambda j: -score[j])
        if kind == "topk":
            keep = max(1, math.ceil(share * len(video) - 1e-9))
            chosen = order[:keep]
            if keep < len(order):
                margin = min(margin, score[order[keep - 1]] - score[order[keep]])
        else:
            largest = max(score.values())
            mass = {j: math.exp(score[j] - largest) for j in free}
            total, chosen, reached = sum(mass.values()), [], 0.0
            for j in order:
                if reached >= share and share < 1:
                    break
                chosen.append(j)
                reached += mass[j] / total
                margin = min(margin, abs(reached - share)) if share < 1 else margin
        mask[i, chosen] = True
    return mask, margin


def mask_of_lists(lists, tiles: int, pattern: int) -> np.ndarray:
    """Return the mask that one pattern's lists stand for; its transposed lists, if any, must say the same."""
    mask, other = np.zeros((tiles, tiles), bool), np.zeros((tiles, tiles), bool)
    for i in range(tiles):
        seen = lists.ids[pattern, i, : int(lists.count[pattern, i])].tolist()
        assert seen == sorted(set(seen))
        mask[i, seen] = True
        sees = lists.key_ids[pattern, i, : int(lists.key_count[pattern, i])].tolist()
        assert sees == sorted(set(sees))
        other[sees, i] = True
    assert lists.forward_only or (mask == other).all()
    return mask
