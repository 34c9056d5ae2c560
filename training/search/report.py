"""What a search found, as pictures beside its table, and its errors as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...kernels.grid import choose_tiling
from ...kernels.head_table import HeadTable
from ...kernels.headsearch.frontier import frontier
from ...kernels.headsearch.gathered import Gathered
from ...kernels.headsearch.search import HeadSearch
from ...kernels.pattern_text import format_pattern
from ..headplots import plot_densities, plot_families, plot_lines, plot_maps

SHOWN_BANDS, SHOWN_HEADS = 6, 6
# What each file of the report is, by the first word of its name.
ABOUT = {
    "density": "density of every head, by step",
    "frontier": "what other lambdas and epsilons would give; the dot is this table",
    "families": "what heads look at in a dense run at this sigma",
    "attention": "some of these heads, frame by frame",
    "evidence": "the same, as numbers",
    "errors": "the error of every candidate in every head",
}


def report_folder(out: Path) -> Path:
    """Return the folder of the report of table ``out``."""
    return out.with_name(f"{out.stem}-report")


def write_report(table: HeadTable, search: HeadSearch, gathered: Gathered | None, out: Path) -> Iterator[Path]:
    """Write density maps, the trade of density for error, what heads look at, and the errors, into the folder
    ``<table>-report``; yield what was written."""
    folder = report_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    yield _densities(table, folder / "density.png")
    yield plot_lines(
        _curves(search),
        folder / "frontier.png",
        xlabel="mean density",
        ylabel=f"mean error ({search.request.error})",
        title="what other settings would make of the measured errors",
        log="y",
    )
    if gathered is not None:
        for sigma in gathered.steps:
            yield plot_families(
                gathered.classes(sigma), folder / f"families-{sigma:.3f}.png", f"what heads look at, sigma {sigma:.3f}"
            )
        yield _maps(gathered, folder / "attention.png")
        yield gathered.save(folder / "evidence.npz")
    errors = folder / "errors.npz"
    np.savez_compressed(
        errors,
        errors=search.errors,
        counts=search.counts,
        costs=search.costs,
        densities=search.densities,
        bands=np.array(search.request.bands),
        candidates=np.array([format_pattern(p) for p in search.candidates]),
    )
    yield errors


def _curves(search: HeadSearch) -> dict[str, tuple[list[float], list[float]]]:
    """Return the frontier without the points that lose nothing, which a logarithm cannot show, and this table's."""
    chosen, errors = search.choose()[0], search.errors
    known = np.isfinite(errors).any(-1)
    error = float(np.take_along_axis(errors[known], chosen[known][:, None], -1).mean())
    curves = {**frontier(search), "this table": ([float(search.densities[chosen[known]].mean())], [error])}
    shown = {label: [(x, y) for x, y in zip(*points) if y > 1e-8] for label, points in curves.items()}
    return {label: tuple(map(list, zip(*points))) for label, points in shown.items() if points} or curves


def _densities(table: HeadTable, path: Path) -> Path:
    tiling = choose_tiling(table.grid, table.slots, table.tile)
    last = len(table.bands) - 1
    shown = sorted({round(last * i / max(1, SHOWN_BANDS - 1)) for i in range(SHOWN_BANDS)})
    maps = [table.head_densities(tiling, band).mean(0) for band in shown]
    starts = [1.0, *(band.until for band in table.bands[:-1])]
    titles = [f"sigma {starts[band]:.2f} to {table.bands[band].until:.2f}" for band in shown]
    return plot_densities(np.array(maps), titles, path)


def _maps(gathered: Gathered, path: Path) -> Path:
    """Draw heads of as many families as there are, the most concentrated of each, in the middle step."""
    sigma = gathered.steps[len(gathered.steps) // 2]
    words, means = gathered.classes(sigma), gathered.layer_means(sigma)
    chosen: list[tuple[int, int]] = []
    for word in dict.fromkeys(words.ravel().tolist()):
        places = [tuple(place) for place in np.argwhere(words == word)]
        chosen.append(min(places, key=lambda place: means[place[0]].entropy[0, place[1]]))
    rest = [tuple(place) for place in np.argwhere(words != "") if tuple(place) not in chosen]
    chosen = [*chosen, *rest][:SHOWN_HEADS]
    each = [means[layer] for layer, _ in chosen]
    frames = np.array([e.frames[0, head].mean(0) for e, (_, head) in zip(each, chosen)])
    video = int(np.prod(each[0].pieces))
    # Runs without tokens outside the video have no other tiles.
    columns = np.array([e.columns[0, head][:video] for e, (_, head) in zip(each, chosen)])
    titles = [f"layer {layer} head {head}: {words[layer, head]}" for layer, head in chosen]
    return plot_maps(frames, columns, each[0].pieces, titles, path)
