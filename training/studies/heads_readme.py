"""The README's lines on head patterns, generated from the study's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import ConfigError

NAME = "head patterns"


def readme_block(found: dict[str, Any]) -> str:
    """Return what the README says of the study, without the markers."""
    facts = found["conditions"]
    lines = [
        "| mean density | best uniform window | its output error | searched head patterns | searched, with FP8 |",
        "|---:|---|---:|---:|---:|",
    ]
    rows = {(r["target"], r["attention"], r["by"]): r for r in found["budgets"]}
    for target in sorted({r["target"] for r in found["budgets"]}, reverse=True):
        plain, fp8 = (rows[target, attention, "output"] for attention in ("bf16", "fp8"))
        lines.append(
            f"| {plain['density']:.1%} | `{plain['window'].removeprefix('window ')}` | {plain['window_error']:.3f} | "
            f"{plain['error']:.3f} | {fp8['error']:.3f} |"
        )
    read = [r for r in found["saved"] if r["saved"] is not None and not r["at_most"]]
    less = ", ".join(f"{r['saved']:.0%} less attention than the window of {r['window_density']:.1%}" for r in read)
    best = min((r for r in found["online"] if r["density"] < 0.3), key=lambda r: r["error"])
    lines += [
        "",
        f"A study on a small base ({facts['layers']} layers of {facts['heads']} heads, trained on real clips): "
        f"relative L2 error of the output on {facts['held_out']} held-out clips at equal density. At equal error the "
        f"searched patterns compute {less}. Choosing tiles in every call is better still on this model "
        f"(`{best['word']}`: {best['error']:.3f} at {best['density']:.1%}), for its time in every call. None of it is "
        "about Wan2.1 1.3B or 14B. All tables, with the paper's ablations: "
        "[docs/studies/head-patterns.md](docs/studies/head-patterns.md).",
    ]
    return "\n".join(lines)


def update_readme(path: Path, found: dict[str, Any]) -> Path:
    """Replace what stands between the markers; raises ConfigError if they are not there."""
    return replace_block(path, NAME, readme_block(found))


def replace_block(path: Path, name: str, block: str) -> Path:
    """Replace what stands between a file's lines ``<!-- name: begin -->`` and ``end``; ConfigError without them."""
    begin, end = markers(name)
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ConfigError(f"{path.name} has no lines '{begin}' and '{end}'; add them where the figures belong")
    path.write_text(f"{before}{begin}\n{block}\n{end}{after}", encoding="utf-8")
    return path


def markers(name: str) -> tuple[str, str]:
    """Return the lines around a generated block."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
