"""The report on MSFP: Markdown, a picture and the README's lines, made from the results file and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ConfigError
from .heads_readme import replace_block
from .msfp import ARMS, DFA, LORA, MSFP, PLAIN, TABLES, TALORA
from .plots import COLORS, INK, panels, save
from .statistics import mean_and_spread

README = "msfp"
WORDS = {
    PLAIN: "e2m1, signed, after training",
    MSFP: "+ MSFP: all formats, mixed signs",
    LORA: "+ fine-tune, one LoRA",
    TALORA: "+ TALoRA: a hub with a router",
    DFA: "+ DFA: denoising-factor loss",
}
TITLES = {"w4a4": "Weights and inputs in 4 bits", "w4": "Weights alone in 4 bits"}
SHOWN = ("time_embedding.2", "time_projection.1", "ffn.2", "ffn.0", "self_attn.q", "self_attn.o")


def write_msfp_report(results: Path, folder: Path, size: str = "cpu", readme: Path | None = None) -> list[Path]:
    """Write ``msfp.md`` (``msfp-<size>.md`` for another size than cpu) with its picture, and for the size cpu the
    README's lines; return the paths. ConfigError for a missing or broken file."""
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        tables = {table: summary(found, table) for table in TABLES}
        rows = found["activations"]
    except FileNotFoundError:
        raise ConfigError(f"{results}: there are no results; run `python -m training.studies msfp` first") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{results}: is no results file ({error}); run `python -m training.studies msfp`") from None
    stem = "msfp" if size == "cpu" else f"msfp-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    picture = _picture(found, tables, folder / f"{stem}.png")
    text = folder / f"{stem}.md"
    text.write_text(_markdown(found, tables, rows, stem), encoding="utf-8")
    written = [text, picture]
    if readme is not None and size == "cpu":
        written.append(replace_block(readme, README, readme_block(found)))
    return written


def summary(found: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """Return a row per arm of a table: mean and spread over seeds of the loss, its excess, and the PSNR; the share of
    the first arm's excess that is gone."""
    full, rows = found["full"]["loss"], []
    for name in ARMS:
        arms = [arm for arm in found["arms"] if (arm["table"], arm["arm"]) == (table, name)]
        excess = [arm["loss"] / full - 1 for arm in arms]
        weighted = [arm["weighted"] / found["full"]["weighted"] - 1 for arm in arms]
        videos = [float(np.mean(arm["psnr"])) for arm in arms]
        rows.append(
            {
                "arm": name, "loss": mean_and_spread([arm["loss"] for arm in arms]), "excess": mean_and_spread(excess),
                "weighted": mean_and_spread(weighted), "psnr": mean_and_spread(videos), "seeds": len(arms),
                "excesses": excess, "psnrs": videos,
            }
        )  # fmt: skip
    for row in rows:
        row["closed"] = 1 - row["excess"][0] / rows[0]["excess"][0]
    return rows


def readme_block(found: dict[str, Any]) -> str:
    """Return what the README says of the study, without the markers."""
    facts = found["conditions"]
    tables = {table: summary(found, table) for table in TABLES}
    lines = [
        "| | weights and inputs in 4 bits: loss over full precision | PSNR of videos | weights alone: loss | PSNR |",
        "|---|---:|---:|---:|---:|",
    ]
    for both, alone in zip(tables["w4a4"], tables["w4"], strict=True):
        cells = [_plus(both["excess"]), _decibel(both["psnr"]), _plus(alone["excess"]), _decibel(alone["psnr"])]
        lines.append(f"| {WORDS[both['arm']]} | {' | '.join(cells)} |")
    lines += [
        "",
        f"A study on a small base (4.8 M parameters, trained on real clips), {facts['seeds']} seeds, mean and spread: "
        f"flow-matching loss on {facts['held_out']} held-out clips, and PSNR of {facts['videos']} sampled videos "
        "against the full-precision model's from the same noise. "
        f"{_against_one(tables)} It says nothing about Wan2.1 1.3B or 14B. All tables: "
        "[docs/studies/msfp.md](docs/studies/msfp.md).",
    ]
    return "\n".join(lines)


def _against_one(tables: dict[str, list[dict]]) -> str:
    """Say what the hub and the loss change against one LoRA, and whether it is more than seeds change."""
    said = []
    for name, words in ((TALORA, "the hub"), (DFA, "the hub with the denoising-factor loss")):
        parts, beyond = [], False
        for rows in tables.values():
            one, other = (next(row for row in rows if row["arm"] == arm) for arm in (LORA, name))
            loss, video = (other[key][0] - one[key][0] for key in ("excess", "psnr"))
            beyond |= any(abs(d) > max(one[k][1], other[k][1]) for d, k in ((loss, "excess"), (video, "psnr")))
            parts.append(f"{100 * loss:+.2f} points and {video:+.1f} dB")
        spread = "more than the seeds differ by somewhere" if beyond else "no more than the seeds differ by"
        said.append(f"{words} makes a difference of {parts[0]}, with weights alone {parts[1]} ({spread})")
    return f"Against one LoRA of the same rank {'; '.join(said)}."


def _plus(pair: tuple[float, float]) -> str:
    return f"{pair[0]:+.2%} ± {100 * pair[1]:.2f}"


def _decibel(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} ± {pair[1]:.2f} dB"


def _picture(found: dict[str, Any], tables: dict[str, list[dict]], path: Path) -> Path:
    made, axes = panels(1, 2, 10.0, 3.6)
    for number, (key, label, scale) in enumerate(
        (("excesses", "held-out loss over full precision, %", 100), ("psnrs", "PSNR of videos, dB", 1))
    ):
        axis = axes[number]
        for color, (table, rows) in zip(COLORS, tables.items()):
            means = [scale * float(np.mean(row[key])) for row in rows]
            axis.plot(range(len(rows)), means, color=color, marker="o", label=TITLES[table].lower())
            for place, row in enumerate(rows):
                axis.plot([place] * len(row[key]), [scale * value for value in row[key]], ".", color=color, alpha=0.5)
        axis.set_xticks(range(len(ARMS)), ARMS)
        axis.set(ylabel=label)
        if number == 0:
            axis.axhline(0, color=INK, linewidth=0.8)
            axis.legend(frameon=False)
    return save(made, path)


def _markdown(found: dict[str, Any], tables: dict[str, list[dict]], rows: Sequence[dict], stem: str) -> str:
    facts, full = found["conditions"], found["full"]
    lines = [
        "# MSFP on the small base",
        "",
        "4-bit floating point with mixed signs, timestep-aware LoRA and the denoising-factor loss (arXiv 2505.21591), "
        "each added to the one before. Written by `python -m training.studies msfp` from "
        "`training/studies/results/msfp-cpu.json`.",
        "",
        f"Base: `make study-base` ({facts['base'][:12]}), quantized by `python -m training.quantize` with its default "
        f"settings (weights in groups of 64). {facts['seeds']} seeds, each with calibration clips of its own and a "
        f"fine-tune of its own: {facts['steps']} steps of {facts['batch']} samples, rank {facts['rank']}, hub of "
        f"{facts['hub']}, learning rate {facts['rate']:g}, learning the full-precision model's velocity. The loss is "
        f"flow matching on {facts['held_out']} held-out clips at 8 noise levels with fixed noise; full precision has "
        f"{full['loss']:.4f}. PSNR is of {facts['videos']} videos of {facts['sampling_steps']} steps against the "
        f"full-precision model's from the same noise. Mean ± standard deviation over seeds. torch {facts['torch']}, "
        f"{facts['date']}.",
        "",
    ]
    for table, summarized in tables.items():
        lines += [f"## {TITLES[table]}", ""]
        lines += ["| | loss | over full precision | weighted by the denoising factor | gap closed | PSNR |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        for row in summarized:
            lines.append(
                f"| {WORDS[row['arm']]} | {row['loss'][0]:.4f} ± {row['loss'][1]:.4f} | {_plus(row['excess'])} | "
                f"{_plus(row['weighted'])} | {row['closed']:.0%} | {_decibel(row['psnr'])} |"
            )
        lines += ["", *_steps(summarized), ""]
        if TABLES[table] == "none":
            lines += ["Weights alone need no calibration clips: the first two rows do not depend on the seed.", ""]
    lines += [
        f"![loss and PSNR per step]({stem}.png)",
        "",
        _against_one(tables),
        "",
        "*Gap closed*: the share of the first row's excess that is gone. *Weighted*: the same losses with each noise "
        "level weighed by the sampler's step there, which is what the denoising-factor loss trains for.",
        "",
        *_activations(rows),
    ]
    return "\n".join(lines) + "\n"


def _steps(rows: Sequence[dict]) -> list[str]:
    """Say of each step whether it is better than the one before, by the seeds."""
    said = []
    for before, after in pairwise(rows):
        better = sum(b > a for b, a in zip(before["excesses"], after["excesses"]))
        higher = sum(a > b for b, a in zip(before["psnrs"], after["psnrs"]))
        said.append(
            f"{after['arm']} against {before['arm']}: loss lower in {better}, PSNR higher in {higher} of "
            f"{after['seeds']} seeds"
        )
    return ["; ".join(said) + "."]


def _activations(rows: Sequence[dict]) -> list[str]:
    lines = [
        "## Signed and unsigned formats on activations",
        "",
        "Mean squared error over the mean square, both with the format and range of least error; unsigned formats with "
        "a zero point are tried where (high + low) / (high - low) of the 0.1 % and 99.9 % quantiles is at least 1/3. "
        "Inputs of the base's layers (mean over its blocks), and synthetic ones.",
        "",
        "| input | bits | asymmetry | signed | unsigned | ratio | INT | chosen |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    synthetic = dict.fromkeys(row["input"] for row in rows if row["kind"] == "synthetic")
    groups = {name: [row for row in rows if row["kind"] == name] for name in SHOWN}
    groups |= {name: [row for row in rows if row["input"] == name] for name in synthetic}
    for name, group in groups.items():
        for bits in sorted({row["bits"] for row in group}):
            lines.append(_activation(f"`{name}`" if name in SHOWN else name, [r for r in group if r["bits"] == bits]))
    return lines


def _activation(name: str, group: Sequence[dict]) -> str:
    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in group]))

    tried = [row for row in group if row["unsigned"] is not None]
    unsigned = ratio = "not tried"
    if tried:
        value = float(np.mean([row["unsigned"] for row in tried]))
        unsigned, ratio = _share(value), f"{np.mean([row['signed'] for row in tried]) / value:.2f}"
    chosen = ", ".join(dict.fromkeys(str(row["chosen"]) for row in group))
    return (
        f"| {name} | {group[0]['bits']} | {mean('asymmetry'):+.2f} | {_share(mean('signed'))} | {unsigned} | {ratio} | "
        f"{_share(mean('int'))} | {chosen} |"
    )


def _share(value: float) -> str:
    return f"{value:.2%}" if value >= 1e-3 else f"{value:.1e}"
