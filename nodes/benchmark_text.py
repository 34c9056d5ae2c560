"""The benchmark as text: what was measured, under which conditions, and what was left out."""

from __future__ import annotations

from ..kernels import cards
from ..kernels.contestants import Row
from ..kernels.expected import pace_words
from ..kernels.measure import Measurement

_HEAD = f"{'attention':<30} {'density':>8}  {'window':<14} {'ms':>10} {'quartiles':>19} {'calls':>6}  {'speedup':>8}"


def label_of(row: Row) -> str:
    """Return what a row is called."""
    return f"dense: {row.name}" if row.family == "dense" else f"FPSAttention: {row.name}"


def headline(result: Measurement) -> str:
    """Return what the measurement says in one sentence."""
    dense, ours = result.strongest(), result.ours()
    if not ours:
        return f"FPSAttention was not measured on {result.card}."
    if dense is None:
        return f"No dense attention could be timed on {result.card}, so there is no speedup to tell."
    near = min(ours, key=lambda row: abs(row.density - 0.3))
    least = ours[-1]
    shown = (near, least) if near is not least else (near,)
    parts = [f"{pace_words(result.speedup(row))} at {row.density:.0%}" for row in shown]
    parts[0] += " density"
    return f"Speed against {label_of(dense)} on {result.card}: {', '.join(parts)}."


def conditions(result: Measurement) -> list[str]:
    """Return the lines that say what the times hold for."""
    size = result.size
    dtype = str(size.dtype).removeprefix("torch.")
    entry = result.entry() or {}
    shape = "x".join(map(str, size.grid.shape))
    heads = f"{size.heads} head{'s' if size.heads > 1 else ''} of {size.head_dim}"
    lines = [f"{result.card}; grid {shape} = {size.grid.tokens:,} tokens, {heads}, batch 1, {dtype}"]
    software = [f"torch {entry.get('torch')}", cards.runtime()]
    software += [f"triton {entry['triton']}"] if entry.get("triton") and size.device.type == "cuda" else []
    software += [f"driver {entry['driver']}"] if entry.get("driver") else []
    if entry:
        tile = "x".join(map(str, entry["tile"]))
        software.append(f"tiles of {tile}")
        lines.append(", ".join(software))
    return lines


def benchmark_text(result: Measurement, video: str, kept: str) -> str:
    """Return the table of ``result`` under its conditions; ``kept`` says where the times went."""
    lines = [f"FPSAttention Benchmark: {video}", headline(result), "", *conditions(result), ""]
    scaled = result.scale != 1.0 and result.near
    lines.append(_HEAD + (f"  {'expected ms':>12}" if scaled else ""))
    for row in result.rows:
        lines.append(_line(result, row, scaled))
    lines += [
        "",
        "One self-attention call on random q, k, v; FPSAttention's times include quantization and changes of layout.",
        "Median and quartiles of calls that took turns; the speedup is against the fastest dense one of this run.",
        *(f"Note: {note}" for note in result.notes),
        kept,
    ]
    return "\n".join(lines) + "\n"


def _line(result: Measurement, row: Row, scaled: bool) -> str:
    head = f"{label_of(row):<30} {row.density:>8.1%}  {row.window or '-':<14}"
    if row.timing is None:
        return f"{head} {row.note}"
    timing = row.timing
    spread = f"{timing.low:.3f} - {timing.high:.3f}"
    speedup = result.speedup(row)
    ratio = "-" if speedup is None else f"{speedup:.2f}x"
    line = f"{head} {timing.median:>10.3f} {spread:>19} {timing.count:>6}  {ratio:>8}"
    return line + (f"  {timing.median * result.scale:>12,.1f}" if scaled else "")
