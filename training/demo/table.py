"""The demo's table, as Markdown and JSON, with a caption that says what it shows and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

from .rows import Row, recovered


def markdown(rows: dict[str, Row], facts: dict[str, str]) -> str:
    """Return the table with its caption; ``facts`` are further lines by name."""
    base, dense = rows["base"].loss, rows["D"].loss
    lines = [
        "| weights and attention | mean density | validation loss | vs dense base | vs dense fine-tune (D) |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows.values():
        density = "chosen online" if row.density is None else f"{row.density:.1%}"
        lines.append(
            f"| {row.title} | {density} | {row.loss:.4f} | {row.loss / base - 1:+.1%} | {row.loss / dense - 1:+.1%} |"
        )
    share = recovered(rows)
    if share is None:
        lines += ["", "Share of the gap closed: not stated, the gap is too small to divide by."]
    else:
        lines += ["", f"Strict share of the gap closed by joint training, (B - C) / (B - D): **{share:.0%}**."]
    lines += ["", *(f"- {name}: {value}" for name, value in facts.items()), "", caption(rows)]
    return "\n".join(lines) + "\n"


def save(rows: dict[str, Row], facts: dict[str, str], folder: Path) -> list[Path]:
    """Write ``table.md`` and ``table.json`` into ``folder`` and return their paths."""
    text, data = folder / "table.md", folder / "table.json"
    text.write_text("# What the demo measured\n\n" + markdown(rows, facts), encoding="utf-8")
    content = {
        "rows": {
            key: {
                "title": row.title,
                "density": row.density,
                "loss": row.loss,
                "per_sigma": {f"{sigma:g}": loss for sigma, loss in row.validation.per_sigma.items()},
            }
            for key, row in rows.items()
        },
        "strict_share_recovered": recovered(rows),
        "facts": facts,
    }
    data.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [text, data]


# Below this change of the loss, FP8 alone is called free.
FREE = 0.005


def caption(rows: dict[str, Row]) -> str:
    """Return what the table shows, each outcome read from the rows, and what it does not show."""
    loss = {key: row.loss for key, row in rows.items()}
    alone, untrained = loss["fp8"] / loss["base"] - 1, loss["A"] / loss["base"] - 1
    parts = [
        "What this shows: losses on the held-out last part of the clip, with the same latents, noise and noise levels "
        "in every row. B and D are the controls: they had the same training steps, batches and noise as C, only dense.",
        f"FP8 alone changes the loss by {alone:+.2%}, "
        + ("next to nothing" if abs(alone) < FREE else f"which is not below {FREE:.1%}")
        + ".",
        f"The training-free model pays {untrained:+.1%} for its sparsity (A over base)."
        if untrained > 0
        else f"The training-free model pays nothing for its sparsity ({untrained:+.1%}, A over base).",
        "Fine-tuning with the same FP8 sparse attention "
        + (f"ends {1 - loss['C'] / loss['B']:.1%} below" if loss["C"] < loss["B"] else "does not end below")
        + " the dense fine-tune that is used sparse (C against B), and "
        + ("stays above" if loss["C"] > loss["D"] else "is not above")
        + " the one that is used dense (C against D).",
        "What it does not show: it is one seed and one clip, on a tiny model that is tested on unseen time but not on "
        "unseen content; no claim about Wan2.1 1.3B or 14B follows, and the videos are not judged by eye. At this size "
        "(a few hundred tokens) sparse attention is not faster than dense; the line on the attention alone times it on "
        "more tokens.",
    ]
    return " ".join(parts)


BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"


def into_readme(path: Path, text: str) -> None:
    """Replace what stands between the two markers of ``path`` by ``text``; raises ValueError without markers."""
    content = path.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name} has no lines '{BEGIN}' and '{END}'; add them where the table belongs.")
    path.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}", encoding="utf-8")
