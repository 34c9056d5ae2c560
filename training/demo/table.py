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
        lines.append(
            f"| {row.title} | {row.density:.1%} | {row.loss:.4f} | {row.loss / base - 1:+.1%} | "
            f"{row.loss / dense - 1:+.1%} |"
        )
    share = recovered(rows)
    if share is None:
        lines += ["", "Share of the gap closed: not stated, the gap is too small to divide by."]
    else:
        lines += ["", f"Strict share of the gap closed by joint training, (B - C) / (B - D): **{share:.0%}**."]
    lines += ["", *(f"- {name}: {value}" for name, value in facts.items()), "", CAPTION]
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


CAPTION = (
    "What this shows: on the held-out last part of the clip, with the same latents, noise and noise levels in every "
    "row, the training-free model pays for its sparsity, and fine-tuning with the same FP8 sparse attention wins back "
    "part of it. B and D are the controls: they had the same training steps, batches and noise, only dense. FP8 alone "
    "costs next to nothing here. What it does not show: one seed, one clip, a model of a few million parameters that "
    "has seen unseen time but no unseen content; no claim about Wan2.1 1.3B or 14B follows, no full recovery is "
    "reached, and the videos are not judged by eye. At this size (a few hundred tokens) sparse attention is not faster "
    "than dense; the last line times the attention alone at a size where it is."
)

BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"


def into_readme(path: Path, text: str) -> None:
    """Replace what stands between the two markers of ``path`` by ``text``; raises ValueError without markers."""
    content = path.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path.name} has no lines '{BEGIN}' and '{END}'; add them where the table belongs.")
    path.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}", encoding="utf-8")
