"""The studies' command line: clips, run, report, heads, msfp."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..failures import exit_code
from .plan import PARTS
from .sizes import SIZES

PACK = Path(__file__).resolve().parent.parent.parent
CLIPS = Path(".cache/study/clips")
EXIT_OK, EXIT_MORE = 0, 75


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 done, 2 bad input (one sentence), 75 time is over, call again."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    commands = {"clips": _clips, "run": _run, "report": _report, "heads": _heads, "msfp": _msfp}
    return exit_code(lambda: commands[args.command](args))


def clips_folder() -> Path:
    """Return where the clips lie: STUDY_CLIPS, or a folder of the cache."""
    return Path(os.environ.get("STUDY_CLIPS") or CLIPS)


def _clips(args: argparse.Namespace) -> int:
    from .clips import fetch_clips, present

    folder = clips_folder()
    for problem in fetch_clips(folder):
        print(f"warning: {problem}", file=sys.stderr)
    print(f"{folder}: {', '.join(present(folder))}")
    return EXIT_OK


def _run(args: argparse.Namespace) -> int:
    from .runner import run_study

    done = run_study(SIZES[args.size], args.parts, args.budget, args.base, args.cache, args.results)
    return EXIT_OK if done else EXIT_MORE


def _report(args: argparse.Namespace) -> int:
    from .report import write_report

    for path in write_report(args.results / f"{args.size}.json", args.out):
        print(path)
    return EXIT_OK


def _heads(args: argparse.Namespace) -> int:
    from .heads_report import write_heads_report
    from .heads_run import run_heads_study

    results = args.results / f"heads-{args.size}.json"
    done = run_heads_study(SIZES[args.size], args.budget, args.base, args.cache, results)
    if not done:
        return EXIT_MORE
    for path in write_heads_report(results, args.out, args.size, PACK / "README.md"):
        print(path)
    return EXIT_OK


def _msfp(args: argparse.Namespace) -> int:
    from .msfp_report import write_msfp_report
    from .msfp_run import run_msfp_study

    results = args.results / f"msfp-{args.size}.json"
    if not run_msfp_study(SIZES[args.size], args.budget, args.base, args.cache, results):
        return EXIT_MORE
    for path in write_msfp_report(results, args.out, args.size, PACK / "README.md"):
        print(path)
    return EXIT_OK


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise argparse.ArgumentTypeError(f"'{text}' names no part; parts are {', '.join(PARTS)}")
    return parts


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds; write for example 3600")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.studies", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("clips", "run", "report", "heads", "msfp"),
        default="run",
        help="clips: fetch them; run: do what is missing and write results and report; report: write it again; "
        "heads, msfp: the study of head patterns, of 4-bit floating point, with its report",
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu", help="h200: 80 M parameters, for a card")
    parser.add_argument("--parts", type=_parts, default=PARTS, metavar="A,B", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--budget", type=_seconds, metavar="SECONDS", help="stop in good order after so long")
    parser.add_argument("--base", type=Path, metavar="FILE", help="the base's file; default: what make study-base made")
    parser.add_argument("--cache", type=Path, default=Path("output/study"), help="weights and results of every arm")
    parser.add_argument("--results", type=Path, default=PACK / "training" / "studies" / "results")
    parser.add_argument("--out", type=Path, default=PACK / "docs" / "studies", help="where the report goes")
    return parser


class Say:
    """Progress lines with the time since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        print(f"[{minutes}:{seconds:02d}] {text}", flush=True)
