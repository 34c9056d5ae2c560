"""The text of a cell of head tables: costs of patterns, predicted against measured plans, ways to run mixed heads."""

from __future__ import annotations

from collections.abc import Callable


def text(name: str, result: dict, columns: Callable[[list[list[str]]], str]) -> str:
    """Return the cell as text; ``columns`` aligns rows."""
    cell = result["cell"]
    what = f"{result['tokens']:,} tokens, {cell['heads']} heads of {cell['dim']}, {result['attention']}"
    lines = [f"## {name}: {what}", f"backend: {result['backend']}, timed by {result['clock']}", result["headline"]]
    lines.append(f"a call costs {result['fixed_ms']:.3f} ms beyond its heads")
    table = [["pattern", "family", "density", "ms per head", "of full", "source"]]
    for row in result["patterns"]:
        figures = [f"{row['density']:.1%}", f"{row.get('ms', float('nan')):.3f}", f"{row['relative']:.1%}"]
        table.append([row["pattern"][:40], row["family"], *figures, row["source"]])
    lines.append(columns(table))
    table = [["plan", "density", "predicted ms", "measured ms", "spread", "error", "error by density"]]
    for number, row in enumerate(result["plans"], 1):
        times = [f"{row['predicted_ms']:.2f}", f"{row['ms']:.2f}", f"{row['spread']:.1%}"]
        errors = [f"{row['error']:+.1%}", f"{row['error_by_density']:+.1%}"]
        table.append([f"{number} ({row['layers']} layers)", f"{row['density']:.1%}", *times, *errors])
    lines.append(columns(table))
    fusion = result["fusion"]
    table = [[f"{fusion['heads']} heads, {len(fusion['patterns'])} patterns", "calls", "launches", "ms", "output"]]
    for way, row in fusion["ways"].items():
        launches = ", ".join(f"{stage} {n}" for stage, n in row["launches"].items()) or "-"
        output = "equal" if row["equal"] else f"off by {row['distance']:.1e}"
        table.append([way, str(row["calls"]), launches, f"{row['ms']:.3f}", output])
    lines.append(columns(table))
    return "\n".join(lines)
