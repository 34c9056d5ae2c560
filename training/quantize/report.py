"""What a quantization chose, layer by layer: a table, the distributions that it chose for, and all as JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .layers import kind_of
from .samples import InputSamples
from .search_input import ASYMMETRIC, InputChoice
from .search_weight import WeightChoice

BINS = 121
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1120px;margin:24px auto;padding:0 20px;color:#1c1f24}"
    "table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}"
    "td,th{padding:3px 10px;border-bottom:1px solid #dfe3e8;text-align:right}"
    "td:first-child,th:first-child,td.w{text-align:left}tr.kept td{color:#8a9099}"
    "img{max-width:100%}b{font-weight:650}"
)


@dataclass(frozen=True)
class LayerResult:
    """One layer: its weight (None where it stays as it is), its input (None where it was not looked at), samples."""

    layer: str
    weight: WeightChoice | None
    input: InputChoice | None
    samples: InputSamples | None

    def to_dict(self) -> dict[str, Any]:
        """Return the layer as plain values."""
        found: dict[str, Any] = {"layer": self.layer}
        if self.weight is not None:
            form = self.weight.packed.format
            found["weight"] = {
                "format": form.form.name, "granularity": form.granularity, "error": self.weight.error,
                "int": self.weight.integer,
            }  # fmt: skip
        if self.input is not None and self.samples is not None:
            one, seen = self.input, self.samples
            found["input"] = {
                "quantizer": None if one.quantizer is None else one.quantizer.to_dict(), "error": one.error,
                "signed": one.signed, "unsigned": one.unsigned, "int": one.integer, "asymmetry": one.asymmetry,
                "low": seen.low, "high": seen.high, "constant_channels": seen.constant_channels,
            }  # fmt: skip
        return found


def write_report(
    folder: Path,
    results: Sequence[LayerResult],
    observed: Sequence[LayerResult],
    made: Mapping[str, Any],
    *,
    plots: bool,
) -> Path:
    """Return the page ``folder/index.html`` with the table and, per block, the distributions; beside it
    ``layers.json``. ``observed`` are layers that stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "made": dict(made),
        "layers": [one.to_dict() for one in results],
        "kept": [one.to_dict() for one in observed],
    }
    (folder / "layers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    pictures = _pictures(folder, [*observed, *results]) if plots else []
    (folder / "index.html").write_text(_page(results, observed, made, pictures), encoding="utf-8")
    return folder / "index.html"


def _page(
    results: Sequence[LayerResult], observed: Sequence[LayerResult], made: Mapping[str, Any], pictures: Sequence[Path]
) -> str:
    title = f"{html.escape(str(made['model']))} in {made['bits']} bits"
    rows = "".join(_row(one) for one in (*results, *observed))
    asked = html.escape(", ".join(f"{key} {value}" for key, value in made.items() if value not in (None, [], "")))
    images = "".join(f'<h2>{path.stem}</h2><img src="{path.name}" alt="{path.stem}">' for path in pictures)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{title}</h1><p>{asked}</p><p>Errors are mean squared errors over the mean square of what is "
        "rounded, in percent: of the chosen format, of signed formats alone, of unsigned ones (tried where the "
        f"asymmetry, (high + low) / (high - low) of the 0.1 % and 99.9 % quantiles, is at least {ASYMMETRIC:.2f}), and "
        "of integers of as many bits, all with the ranges of least error. Grey layers stay as they are.</p>"
        "<table><tr><th>layer<th>weight<th>error<th>INT<th>input<th>error<th>signed<th>unsigned<th>INT<th>asymmetry"
        f"</tr>{rows}</table>{images}</body></html>\n"
    )


def _row(one: LayerResult) -> str:
    cells = [f"<td>{one.layer}"]
    if one.weight is None:
        cells.append('<td class="w">full precision<td><td>')
    else:
        name = one.weight.packed.format.form.name
        cells.append(f'<td class="w">{name}<td>{_percent(one.weight.error)}<td>{_percent(one.weight.integer)}')
    choice = one.input
    if choice is None:
        cells.append('<td class="w">full precision' + "<td>" * 5)
    else:
        text = "always 0" if choice.quantizer is None else choice.quantizer.text
        errors = (choice.error, choice.signed, choice.unsigned, choice.integer)
        cells.append(f'<td class="w">{text}' + "".join(f"<td>{_percent(error)}" for error in errors))
        cells.append(f"<td>{choice.asymmetry:+.2f}")
    kept = ' class="kept"' if one.weight is None else ""
    return f"<tr{kept}>{''.join(cells)}</tr>"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _pictures(folder: Path, results: Sequence[LayerResult]) -> list[Path]:
    """Draw the inputs' distributions with the values that their formats have, a picture per block."""
    pages: dict[str, list[LayerResult]] = {}
    for one in results:
        if one.input is None or one.samples is None:
            continue
        match = re.match(r"blocks\.(\d+)\.", one.layer)
        pages.setdefault(f"block-{int(match[1]):02d}" if match else "kept", []).append(one)
    return [_draw(folder / f"{name}.png", group) for name, group in pages.items()]


def _draw(path: Path, group: Sequence[LayerResult]) -> Path:
    from ..studies.plots import COLORS, panels, save

    across = min(5, len(group))
    down = -(-len(group) // across)
    made, places = panels(down, across, width=3.0 * across, height=2.1 * down)
    for axes, one in zip(places, group):
        _histogram(axes, one, COLORS)
    for axes in places[len(group) :]:
        axes.set_axis_off()
    save(made, path)
    return path


def _histogram(axes: Any, one: LayerResult, colors: Sequence[str]) -> None:
    import numpy as np

    values = one.samples.tokens.flatten().numpy()
    low, high = (float(x) for x in np.quantile(values, (0.0005, 0.9995)))
    axes.hist(values, bins=np.linspace(low, max(high, low + 1e-12), BINS), color=colors[0], alpha=0.75, density=True)
    axes.set_yscale("log")
    quantizer, text = one.input.quantizer, "always 0"
    if quantizer is not None:
        text = quantizer.text
        if quantizer.mode == "static":
            marks = np.array(quantizer.form.values) * quantizer.maxval / quantizer.form.top + quantizer.zero
            for mark in np.unique(marks[(marks >= low) & (marks <= high)]):
                axes.axvline(mark, color=colors[1], lw=0.7, alpha=0.8)
    axes.set_title(f"{kind_of(one.layer)}\n{text}, error {100 * one.input.error:.1f} %", fontsize=7)
    axes.tick_params(labelsize=6)
