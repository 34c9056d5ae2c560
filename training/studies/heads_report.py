"""The report on head patterns: Markdown and pictures, made from the results file and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ConfigError
from ..headplots import plot_densities, plot_lines
from .heads_readme import update_readme


def write_heads_report(results: Path, folder: Path, size: str = "cpu", readme: Path | None = None) -> list[Path]:
    """Write ``head-patterns.md`` (``head-patterns-<size>.md`` for another size than cpu) with its pictures, and for
    the size cpu the README's lines; return the paths. ConfigError for a missing or broken file.
    """
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        budgets, uniform, ablations = found["budgets"], found["uniform"], found["ablations"]
    except FileNotFoundError:
        raise ConfigError(f"{results}: there are no results; run `python -m training.studies heads` first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{results}: is no results file ({error}); run `python -m training.studies heads`") from None
    stem = "head-patterns" if size == "cpu" else f"head-patterns-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [
        _trade(budgets, uniform, found["online"], folder / f"{stem}-trade.png"),
        _rules(ablations, folder / f"{stem}-rules.png"),
        _map(budgets, folder / f"{stem}-density.png"),
    ]
    text = folder / f"{stem}.md"
    text.write_text(_markdown(found, stem), encoding="utf-8")
    return [text, *pictures, *([update_readme(readme, found)] if readme is not None and size == "cpu" else [])]


def _plain(budgets: Sequence[dict]) -> list[dict]:
    return [r for r in budgets if (r["attention"], r["by"]) == ("bf16", "output")]


def _trade(budgets: Sequence[dict], uniform: dict[str, list[dict]], online: Sequence[dict], path: Path) -> Path:
    best = [rows[0] for rows in uniform.values()]
    curves = {"best uniform window": ([r["density"] for r in best], [r["error"] for r in best])}
    plain = _plain(budgets)
    curves["searched head patterns"] = ([r["density"] for r in plain], [r["error"] for r in plain])
    fp8 = [r for r in budgets if r["attention"] == "fp8"]
    curves["searched, with FP8"] = ([r["density"] for r in fp8], [r["error"] for r in fp8])
    for kind, title in (("svg", "svg"), ("sta", "sta"), ("topk", "topk"), ("cdf", "cdf, no gate")):
        rows = sorted(
            (r for r in online if r["word"].startswith(kind) and r["word"] != "cdf 0.9"), key=lambda r: r["density"]
        )
        curves[title] = ([r["density"] for r in rows], [r["error"] for r in rows])
    return plot_lines(
        curves, path, xlabel="mean density", ylabel="output error, relative L2", title="held-out clips", log="xy"
    )


def _rules(ablations: Sequence[dict], path: Path) -> Path:
    curves = {}
    for kind, title in (("paper", "paper's modes, MSE"), ("ours", "all candidates, normalized")):
        for name, other in (("epsilon", "lambda"), ("lambda", "epsilon")):
            fixed = {"paper": {"lambda": 0.5, "epsilon": 1.0}, "ours": {"lambda": 0.05, "epsilon": 0.05}}[kind][other]
            rows = sorted((r for r in ablations if r["rule"] == kind and r[other] == fixed), key=lambda r: r["density"])
            curves[f"{title}: {name} varies"] = ([r["density"] for r in rows], [max(r["error"], 1e-6) for r in rows])
    return plot_lines(curves, path, xlabel="mean density", ylabel="output error, relative L2", title="", log="y")


def _map(budgets: Sequence[dict], path: Path) -> Path:
    row = next(r for r in _plain(budgets) if r["target"] == 0.3)
    bands = np.array(row["layers"])
    shown = sorted({round((len(bands) - 1) * i / 3) for i in range(4)})
    return plot_densities(bands[shown], [f"step {band} of {len(bands)}" for band in shown], path)


def _markdown(found: dict[str, Any], stem: str) -> str:
    facts, budgets, saved = found["conditions"], found["budgets"], found["saved"]
    lines = [
        "# Head patterns on the small base",
        "",
        "A pattern per head, layer and step, found by the greedy search of Sparse-vDiT (arXiv 2506.03065), against the "
        "best uniform window. Written by `python -m training.studies heads` from "
        "`training/studies/results/heads-cpu.json`.",
        "",
        f"Base: `make study-base` ({facts['base'][:12]}), {facts['layers']} layers of {facts['heads']} heads, "
        f"{facts['tokens']} tokens in {facts['tiles']} tiles. Searches sample {facts['seeds']} seeds from noise in "
        f"{facts['steps']} steps (shift {facts['shift']:g}), two passes. Errors: relative L2 of the model's output "
        f"against its dense output on {facts['held_out']} held-out clips that no search saw, mean over the sampler's "
        f"{facts['steps']} noise levels. torch {facts['torch']}, {facts['date']}.",
        "",
        "## At equal density",
        "",
        "The window is the best of all shapes between three quarters of the target and the target; the search's budget "
        "is that window's exact density.",
        "",
        "| target | density, window | density, search | attention | searched by | best uniform window | its error | "
        "search's error | ratio |",
        "|---:|---:|---:|---|---|---|---:|---:|---:|",
    ]
    for row in budgets:
        ratio = row["error"] / row["window_error"]
        lines.append(
            f"| {row['target']:.0%} | {row['window_density']:.1%} | {row['density']:.1%} | {row['attention']} | "
            f"{row['by']} error | `{row['window']}` | {row['window_error']:.4f} | {row['error']:.4f} | {ratio:.2f} |"
        )
    lines += [
        "",
        "*output error*: a head's normalized error times what its layer's error does to the model's output, measured "
        "first; *normalized*: errors alone.",
    ]
    lines += ["", f"![error over density]({stem}-trade.png)", "", "## At equal error", ""]
    lines += ["| best uniform window | its density | error | density that the search needs | attention work saved |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for row in saved:
        if row["density"] is None:
            lines.append(
                f"| `{row['window']}` | {row['window_density']:.1%} | {row['error']:.4f} | beyond the points | - |"
            )
            continue
        most = "at most " if row["at_most"] else ""
        least = "at least " if row["at_most"] else ""
        lines.append(
            f"| `{row['window']}` | {row['window_density']:.1%} | {row['error']:.4f} | {most}{row['density']:.1%} | "
            f"{least}{row['saved']:.0%} |"
        )
    lines += ["", "Densities between the searched points are read off a line through them, in log(error).", ""]
    lines += _online(found["online"])
    lines += _patterns(budgets, stem)
    lines += _ablation(found["ablations"], stem)
    lines += _evidence(found["evidence"])
    return "\n".join(lines) + "\n"


def _online(rows: Sequence[dict]) -> list[str]:
    lines = [
        "## Selectors that decide in every call",
        "",
        "The same engine and measure, without FP8 (see the picture above). Densities are measured; choosing costs time "
        "of its own, which densities do not show.",
        "",
        "| word | density | error |",
        "|---|---:|---:|",
    ]
    lines += [f"| `{row['word']}` | {row['density']:.1%} | {row['error']:.4f} |" for row in rows]
    return [*lines, ""]


def _patterns(budgets: Sequence[dict], stem: str) -> list[str]:
    lines = ["## What was chosen", "", "Share of (step, layer, head), without FP8:", ""]
    plain = _plain(budgets)
    words = sorted(
        {w for r in plain for w in r["patterns"]}, key=lambda w: (-sum(r["patterns"].get(w, 0) for r in plain), w)
    )
    lines += ["| pattern | " + " | ".join(f"{r['target']:.0%}" for r in plain) + " |", "|---|" + "---:|" * len(plain)]
    for word in words:
        shares = (r["patterns"].get(word, 0) / sum(r["patterns"].values()) for r in plain)
        lines.append(f"| `{word}` | " + " | ".join(f"{s:.0%}" if s else "" for s in shares) + " |")
    return [*lines, "", f"![density per layer and head]({stem}-density.png)", ""]


def _ablation(ablations: Sequence[dict], stem: str) -> list[str]:
    scale = next(r["scale"] for r in ablations if r["rule"] == "paper")
    lines = [
        "## Lambda and epsilon",
        "",
        f"The paper's rule has its four modes (one strength each) and plain MSE; lambda and epsilon are in units of "
        f"{scale:.3g}, a tenth of this model's mean head power, because they mean "
        "nothing across models; ours has all candidates and errors normalized by the layer's power. Shapes are to be "
        "compared with the paper's table 3, not figures.",
        "",
        "| rule | lambda | epsilon | density | error |",
        "|---|---:|---:|---:|---:|",
    ]
    for r in ablations:
        lines.append(f"| {r['rule']} | {r['lambda']:g} | {r['epsilon']:g} | {r['density']:.1%} | {r['error']:.4f} |")
    return [*lines, "", f"![rules]({stem}-rules.png)", ""]


def _evidence(evidence: dict[str, Any]) -> list[str]:
    lines = ["## Do patterns depend on the content?", ""]
    found = evidence.get("prompts")
    total = sum(evidence["families"].values())
    named = ", ".join(
        f"{word} {count / total:.0%}" for word, count in sorted(evidence["families"].items(), key=lambda i: -i[1])
    )
    lines += [f"Heads by what they look at, over {len(evidence['sigmas'])} noise levels: {named}.", ""]
    if found is not None:
        variance = ", ".join(f"{part} {share:.1%}" for part, share in found["variance"].items())
        kappa = "not defined (one family)" if found["kappa"] is None else f"{found['kappa']:.2f}"
        lines += [
            f"This base knows no text, so contents take the place of prompts: {evidence['clips']} held-out clips. "
            f"Variance of the evidence explained by {variance}. A head has the same family on all clips in "
            f"{found['same_family']:.0%} of cases ({found['same_by_chance']:.0%} by chance), Fleiss' kappa {kappa}.",
        ]
    return lines
