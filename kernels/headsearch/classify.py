"""Families of heads from their evidence, stripes from column mass, and how much a head's pattern depends on the prompt.

A head is local along an axis if the nearest quarter of the pairs there holds much more than a quarter of its mass.
``concentrations`` says how much more, from 0 (as uniform attention) to 1 (all of it); everything else follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..grid import Tiling
from ..patterns import Stripe
from .evidence import Evidence, EvidenceError

# The share of the pairs that a pattern may keep: patterns of about a quarter are what a table is made of, and it is
# at least one frame of four. Where the smallest bin is larger (three frames), that bin.
BUDGET = 0.25
# Halfway between uniform attention and all mass within the budget: a quarter of the pairs holds 62.5 % of the mass.
CONCENTRATED = 0.5
# A thousandth of the layer's output power (-30 dB) is what FP8 itself does to the output; less is not missed.
DEAD = 1e-3
# Two stripes are the same if one of them keeps this part of what the other would.
SAME_STRIPE = 0.9
ROUNDS = 8

FEATURES = ("time", "space", "both", "columns")


def concentrations(evidence: Evidence) -> np.ndarray:
    """Return ``(samples, heads, 4)`` of ``FEATURES``: how concentrated the mass is on near frames, near places, both
    together and few columns; 0 as uniform attention, 1 all of it within ``BUDGET``, below 0 if it avoids them.

    Near places are the best of three shapes: a square, a band of rows, a band of columns. Columns (key tiles or key
    frames) are chosen on one half of the rows and judged on the other: few rows of a local head look at few tiles,
    but the other half's look at others.
    """
    space = [
        _concentration(evidence.by_space, evidence.area.sum(0)),
        _concentration(evidence.down, evidence.area_down),
        _concentration(evidence.across, evidence.area_across),
    ]
    both = _box_concentration(evidence.distance, evidence.area)
    columns = np.maximum(_tile_concentration(evidence), _frame_concentration(evidence))
    return np.stack([_concentration(evidence.by_time, evidence.area.sum(1)), np.max(space, 0), both, columns], -1)


def classify(evidence: Evidence) -> list[str]:
    """Return the family of each head (a word of ``pattern_text.FAMILIES``) from the mean over samples."""
    mean = evidence.mean()
    return families(concentrations(mean)[0], mean.share[0])


def families(found: np.ndarray, share: np.ndarray) -> list[str]:
    """Return the family per head of ``concentrations`` ``(heads, 4)`` and output ``share`` ``(heads,)``.

    In this order, so that ties are settled: "skip" if the share is at most ``DEAD`` (never without values); "vertical
    stripe" if columns reach ``CONCENTRATED`` and neither time nor space has more, since columns explain what all
    queries share; "window" if time and space both reach it, "diagonal" or "multi-diagonal" if one does; "window" if
    only both together do; else "full". A head that mixes two of them (a union) is "full" unless one prevails.
    """
    words = []
    for (time, space, both, columns), part in zip(found, share):
        local = time >= CONCENTRATED, space >= CONCENTRATED
        if part <= DEAD:
            words.append("skip")
        elif columns >= CONCENTRATED and columns >= max(time, space):
            words.append("vertical stripe")
        elif all(local):
            words.append("window")
        elif any(local):
            words.append("diagonal" if local[0] else "multi-diagonal")
        else:
            words.append("window" if both >= CONCENTRATED else "full")
    return words


def stripe_candidates(
    evidence: Evidence | Sequence[Evidence], tiling: Tiling, share: float, most: int = 4
) -> list[Stripe]:
    """Return at most ``most`` stripes of ``share`` of the video's tiles that concentrated heads look at.

    Heads of all the given layers count if their column mass is concentrated on tiles (``CONCENTRATED``, judged on the
    other half of the rows). They are clustered by what they look at: the first stripe is that of the heads together,
    each further one that of the head which the stripes so far serve worst, until all are served to ``SAME_STRIPE`` of
    what a stripe of their own would hold; then stripes and heads are matched in turns. Ties go to the earlier head and
    tile. No heads, no stripes. Raises EvidenceError for a share outside 0 to 1 and evidence of another tiling.
    """
    if not 0 < share <= 1:
        raise EvidenceError(f"a stripe has a share of the tiles above 0 and up to 1, got {share:g}.")
    if most < 1:
        raise EvidenceError(f"at least one stripe must be allowed, got {most}.")
    layers = [evidence] if isinstance(evidence, Evidence) else list(evidence)
    inside = slice(tiling.prefix_tiles, tiling.prefix_tiles + tiling.video_tiles)
    heads = [np.zeros((0, tiling.video_tiles))]
    for layer in layers:
        if (layer.grid, layer.pieces) != (tiling.grid, tiling.pieces):
            raise EvidenceError(
                f"the evidence is of {layer.grid.shape} tokens in {layer.pieces} tiles, the tiling has "
                f"{tiling.grid.shape} in {tiling.pieces}; measure it on this tiling."
            )
        mean = layer.mean()
        heads.append(mean.columns[0][_tile_concentration(mean)[0] >= CONCENTRATED][:, inside])
    mass = np.concatenate(heads)
    mass = mass / np.maximum(mass.sum(1, keepdims=True), 1e-30)
    count = max(1, int(np.ceil(share * tiling.video_tiles - 1e-9)))
    chosen = _clustered(mass, count, most)
    return [Stripe(tiling.pieces, tuple(np.flatnonzero(stripe).tolist())) for stripe in chosen]


@dataclass(frozen=True)
class PromptDependence:
    """Whether patterns depend on the prompt, from the same heads under several prompts.

    ``variance`` are shares (they sum to 1) of the variance of ``FEATURES``, each standardized, that are explained by
    "head" (layer and head), "prompt", "step", "head x prompt", "head x step" and what is left, "residual". With one
    step nothing is left: what a prompt does to one head is in "head x prompt" together with the sampling of rows.
    ``same`` is the share of (step, layer, head) whose family is the same for all prompts, ``same_by_chance`` what it
    would be if families were drawn anew for each, ``kappa`` Fleiss' agreement (0 chance, 1 all prompts agree, NaN if
    there is one family only).
    """

    variance: dict[str, float]
    by_feature: dict[str, dict[str, float]]
    same: float
    same_by_chance: float
    kappa: float


def prompt_dependence(features: np.ndarray, classes: np.ndarray) -> PromptDependence:
    """Return the test of the claim that patterns depend on layer and head and hardly on the prompt (Sparse-vDiT 4.1).

    ``features`` ``(prompts, steps, layers, heads, F)`` are ``concentrations``, ``classes`` ``(prompts, steps, layers,
    heads)`` words. Raises EvidenceError for fewer than two prompts or heads, or arrays that do not fit.
    """
    features, classes = np.asarray(features, dtype=np.float64), np.asarray(classes)
    if features.ndim != 5 or classes.shape != features.shape[:4]:
        raise EvidenceError(
            f"features need five axes (prompts, steps, layers, heads, features) and classes the first four, got "
            f"{features.shape} and {classes.shape}."
        )
    prompts, steps, layers, heads, kinds = features.shape
    if prompts < 2 or layers * heads < 2:
        raise EvidenceError(
            f"to compare prompts takes two prompts and two heads, got {prompts} and {layers * heads}; measure more."
        )
    names = FEATURES if kinds == len(FEATURES) else tuple(map(str, range(kinds)))
    y = features.reshape(prompts, steps, layers * heads, kinds)
    y = y - y.mean((0, 1, 2))
    total = np.square(y).sum((0, 1, 2))
    parts = _sums_of_squares(y)
    by_feature = {
        name: {part: float(values[i] / total[i]) for part, values in parts.items()}
        for i, name in enumerate(names)
        if total[i] > 1e-18 * y.size
    }
    variance = {part: float(np.mean([each[part] for each in by_feature.values()] or [np.nan])) for part in parts}
    return PromptDependence(variance, by_feature, *_agreement(classes.reshape(prompts, -1)))


def _concentration(mass: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Return how concentrated ``mass (..., bins)`` is on the first bins, whose shares under uniform attention are
    ``area (bins,)``; a bin that is larger than what is left of the budget counts in part."""
    budget = max(BUDGET, float(area[0]))
    if budget > 1 - 1e-9:
        return np.zeros(mass.shape[:-1])
    before = np.concatenate([[0.0], np.cumsum(area)[:-1]])
    used = np.clip((budget - before) / np.maximum(area, 1e-30), 0, 1) * (area > 0)
    return (_normal(mass) @ used - budget) / (1 - budget)


def _box_concentration(mass: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Return the same for the best box of near frames and near rings within the budget, the rest of which is filled
    with what uniform attention has outside it."""
    inside, size = _normal(mass, axes=2).cumsum(-1).cumsum(-2), area.cumsum(0).cumsum(1)
    budget = max(BUDGET, float(size[0, 0]))
    if budget > 1 - 1e-9:
        return np.zeros(mass.shape[:-2])
    fits = size <= budget + 1e-12
    held = inside + (1 - inside) * (budget - size) / np.maximum(1 - size, 1e-12)
    return (np.where(fits, held, -np.inf).max((-1, -2)) - budget) / (1 - budget)


def _tile_concentration(evidence: Evidence) -> np.ndarray:
    """Return ``(N, H)``: how concentrated attention is on few key tiles, extra tokens' tiles among them."""
    return _held_out(evidence.tiles, evidence.area_tiles)


def _frame_concentration(evidence: Evidence) -> np.ndarray:
    """Return ``(N, H)``: how concentrated attention to the video is on few key frames."""
    frames = evidence.grid.t
    return _held_out(evidence.frames.mean(-2), np.full(frames, 1 / frames))


def _held_out(halves: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Return the mean concentration of ``halves (..., 2, columns)`` on the columns that the other half prefers."""
    halves = _normal(halves)
    found = []
    for chooser, judge in ((0, 1), (1, 0)):
        order = np.argsort(-halves[..., chooser, :] / area, axis=-1, kind="stable")
        mass = np.take_along_axis(halves[..., judge, :], order, -1)
        flat = zip(mass.reshape(-1, len(area)), area[order].reshape(-1, len(area)))
        found.append(np.array([_concentration(m, a) for m, a in flat]).reshape(mass.shape[:-1]))
    return np.mean(found, 0)


def _normal(mass: np.ndarray, axes: int = 1) -> np.ndarray:
    return mass / np.maximum(mass.sum(tuple(range(-axes, 0)), keepdims=True), 1e-30)


def _clustered(mass: np.ndarray, count: int, most: int) -> list[np.ndarray]:
    """Return up to ``most`` different stripes (bool per tile, ``count`` tiles) for heads of column ``mass``."""
    if not len(mass):
        return []
    own = np.sort(mass, 1)[:, -count:].sum(1)
    stripes = [_top(mass.mean(0), count)]
    while len(stripes) < most:
        served = np.max([mass @ stripe for stripe in stripes], 0) / own
        worst = int(np.argmin(served))
        if served[worst] >= SAME_STRIPE:
            break
        stripes.append(_top(mass[worst], count))
        stripes = _matched(mass, stripes, count)
    # After matching, two may be the same.
    return [np.frombuffer(key, dtype=bool) for key in dict.fromkeys(stripe.tobytes() for stripe in stripes)]


def _matched(mass: np.ndarray, stripes: list[np.ndarray], count: int) -> list[np.ndarray]:
    """Return ``stripes`` after turns of giving every head its best stripe and every stripe the best tiles of its
    heads; one without heads is left out."""
    for _ in range(ROUNDS):
        nearest = np.argmax([mass @ stripe for stripe in stripes], 0)
        moved = [_top(mass[nearest == i].mean(0), count) for i in range(len(stripes)) if (nearest == i).any()]
        if len(moved) == len(stripes) and all(map(np.array_equal, moved, stripes)):
            break
        stripes = moved
    return stripes


def _top(mass: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(len(mass), dtype=bool)
    chosen[np.argsort(-mass, kind="stable")[:count]] = True
    return chosen


def _sums_of_squares(y: np.ndarray) -> dict[str, np.ndarray]:
    """Return the balanced three-way decomposition of centered ``y (prompts, steps, heads, F)``, a value per feature."""

    def squares(part: np.ndarray) -> np.ndarray:
        return np.square(np.broadcast_to(part, y.shape)).sum((0, 1, 2))

    head, prompt, step = (y.mean(axes, keepdims=True) for axes in ((0, 1), (1, 2), (0, 2)))
    head_prompt = y.mean(1, keepdims=True) - head - prompt
    head_step = y.mean(0, keepdims=True) - head - step
    rest = y - head - prompt - step - head_prompt - head_step
    names = ("head", "prompt", "step", "head x prompt", "head x step", "residual")
    return {name: squares(part) for name, part in zip(names, (head, prompt, step, head_prompt, head_step, rest))}


def _agreement(classes: np.ndarray) -> tuple[float, float, float]:
    """Return the share of columns of ``classes (prompts, heads)`` that are all one word, that by chance, and kappa."""
    prompts = len(classes)
    votes = np.stack([(classes == word).sum(0) for word in np.unique(classes)], 1)
    share = votes.sum(0) / votes.sum()
    agreed = ((votes * (votes - 1)).sum(1) / (prompts * (prompts - 1))).mean()
    expected = float(np.square(share).sum())
    kappa = (agreed - expected) / (1 - expected) if expected < 1 - 1e-12 else float("nan")
    return float((votes.max(1) == prompts).mean()), float((share**prompts).sum()), float(kappa)
