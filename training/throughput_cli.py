"""The command line of the throughput measurement, and the page docs/throughput.md that it writes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .failures import exit_code

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "training" / "results"
PAGE = ROOT / "docs" / "throughput.md"
WITHIN = 0.1  # of the measured memory

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or write the page; return 0, 1 where memory was predicted wrongly, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m training.throughput", description=__doc__)
    parser.add_argument("--problem", choices=("tiny", "small", "1.3b"), default="tiny", help="model and clip")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant (default 5)")
    parser.add_argument("--per-round", type=int, default=2, help="steps of a turn (default 2)")
    parser.add_argument("--seconds", type=float, default=300.0, help="no further round after so many (default 300)")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results (default training/results)")
    parser.add_argument("--report", action="store_true", help="only write docs/throughput.md from the results there")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("rounds", "per_round", "seconds", "threads"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} is {value:g}; give a number above 0")
    if options.report:
        PAGE.write_text(page(read(options.results)), encoding="utf-8")
        _log.info("%s", PAGE)
        return 0
    return exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    import torch

    from .throughput_measure import PROBLEMS, measure

    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(
        PROBLEMS[options.problem], device=options.device, rounds=options.rounds, per_round=options.per_round,
        seconds=options.seconds,
    )  # fmt: skip
    options.results.mkdir(parents=True, exist_ok=True)
    card = "".join(c if c.isalnum() else "-" for c in str(result["card"]).lower())
    path = options.results / f"throughput-{card}-{options.problem}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    _log.info("%s", line(result))
    _log.info("%s", path)
    error = result["memory"].get("error")
    if error is not None and abs(error) > WITHIN:
        _log.error("memory was predicted %+.0f %% off what CUDA reports; the limit is 10 %%", error * 100)
        return 1
    return 0


def line(result: dict[str, Any]) -> str:
    """Return a result in one line."""
    times = ", ".join(f"{name} {t['ms']:,.0f} ms (+-{t['spread'] / 2:.0%})" for name, t in result["times"].items())
    share = result["data_share"]["share"]
    memory = result["memory"]
    said = f"; memory {memory['error']:+.1%} off" if "error" in memory else ""
    return (
        f"{result['problem']} on {result['card']}: {times}; {result['ratio']:.2f}x at density "
        f"{result['density']:.1%}; waiting for data {share:.2%}{said}"
    )


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the results of a folder, by name of file."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("throughput-*.json"))]


def page(results: Sequence[dict[str, Any]]) -> str:
    """Return the page docs/throughput.md."""
    rows = [
        "# Time of a training step",
        "",
        "One optimizer step (forward, backward, gradient clip, AdamW) of the trainer beside diffusers' plain dense",
        "one: same weights, batch and dtype, taking turns in one run; medians, and half the distance of the quartiles.",
        "Written by `python -m training.throughput --report` from `training/results/`.",
        "",
        "On a CPU (card `stand-in`) our attention is the plain torch reference, which gathers tiles and rounds in",
        "float32: its ratio says that the measurement works, and nothing about the kernels.",
        "",
        "| model | card | tokens | dtype | density | diffusers dense | trainer dense | trainer sparse | ratio "
        "| waiting for data | memory predicted / measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        times = " | ".join(
            f"{r['times'][name]['ms']:,.0f} ms ± {r['times'][name]['spread'] / 2:.0%}"
            for name in ("diffusers dense", "trainer dense", "trainer sparse")
        )
        memory = r["memory"]
        predicted = f"{memory['predicted'] / 2**30:.2f} GiB"
        shown = f"{predicted} / {memory['measured'] / 2**30:.2f} GiB" if "measured" in memory else f"{predicted} / -"
        rows.append(
            f"| {r['model']['parameters'] / 1e6:,.1f} M ({r['problem']}) | {r['card']} | {r['tokens']:,} "
            f"| {r['dtype']} | {r['density']:.1%} | {times} | {r['ratio']:.2f} "
            f"| {r['data_share']['share']:.2%} | {shown} |"
        )
    rows += ["", "Conditions:", ""]
    for r in results:
        versions = ", ".join(f"{name} {r['versions'][name]}" for name in ("torch", "diffusers"))
        rows.append(
            f"- {r['problem']} on {r['card']}: {r['date']}, {r['cpus']} CPUs, {r['threads']} threads, {versions}, "
            f"commit {r['commit']}{' with changes' if r['dirty'] else ''}, recomputation `{r['recompute']}`, "
            f"attention {r['attention_backend']}, {r['times']['trainer sparse']['count']} steps each."
        )
    return "\n".join(rows) + "\n"
