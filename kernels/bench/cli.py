"""The command line of ``python -m kernels.benchmark``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from . import cells as cell_lists
from .cells import Cell, CellError
from .runner import ROOT, Options, run
from .store import RESULTS, ResultError, Store, published, read_json


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    p = argparse.ArgumentParser(
        prog="python -m kernels.benchmark",
        description="Measure our attention and every installed peer: same shapes, same density, quantization included.",
    )
    p.add_argument("--budget", type=float, metavar="SECONDS", help="start no cell after this; a rerun goes on")
    p.add_argument("--only", metavar="WORDS", help="only cells whose name holds one of these comma-separated words")
    p.add_argument("--quick", action="store_true", help="the four cells that say the most")
    p.add_argument("--smoke", action="store_true", help="every kernel once, checked, and one small cell")
    p.add_argument("--tune", action="store_true", help="time every configuration of the forward kernels")
    p.add_argument("--heads", action="store_true", help="head tables: predicted and measured time, one call for all")
    p.add_argument("--msfp", action="store_true", help="4-bit linear layers beside bf16 and FP8 ones")
    p.add_argument("--peers", default="all", metavar="NAMES", help="all, none (ours and torch's cuDNN), or names")
    p.add_argument("--list", action="store_true", help="print the cells in their order and measure nothing")
    p.add_argument("--retry", action="store_true", help="run failed and timed-out cells again")
    p.add_argument("--standin", action="store_true", help="the same path on a CPU, tiny; its numbers mean nothing")
    p.add_argument("--out", type=Path, metavar="FILE", help="result file (default: kernels/results/CARD-COMMIT.json)")
    p.add_argument("--results", type=Path, metavar="FOLDER", help="folder of the default result file")
    p.add_argument("--cache", metavar="FOLDER", help="keep compiled kernels here between runs")
    p.add_argument("--report", type=Path, metavar="FILE", help="make table and plots of a result file again")
    p.add_argument("--readme", action="store_true", help="with --report: put that result into the README as well")
    model = p.add_argument_group("whole denoising step")
    model.add_argument("--model", choices=("wan2.1-14b", "wan2.1-1.3b", "tiny"), help="a random Wan of this size")
    model.add_argument("--resolution", default="720p", help="480p or 720p (default 720p)")
    model.add_argument("--frames", type=int, default=81, help="video frames (default 81)")
    model.add_argument("--schedule", default="15%", metavar="TEXT", help="schedule, preset, or a density such as 15%%")
    model.add_argument("--linears", choices=("bf16", "fp8"), default="bf16", help="fp8: torchao, per row, dynamic")
    model.add_argument("--compile", action="store_true", dest="compiled", help="torch.compile each block")
    model.add_argument("--slots", type=int, choices=(64, 128), default=64, help="rows per tile (default 64)")
    hidden = argparse.SUPPRESS
    p.add_argument("--cell", help=hidden)
    p.add_argument("--answer", type=Path, help=hidden)
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; every expected failure is one sentence on stderr."""
    options = parser().parse_args(arguments)
    try:
        return _run(options)
    except (CellError, ResultError, ValueError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark: stopped; the same command goes on from here.", file=sys.stderr)
        return 130


def _check_card() -> None:
    import torch

    if not torch.cuda.is_available():
        raise CellError(
            "torch finds no CUDA device, so there is nothing to measure; --standin takes the same path on a CPU."
        )


def _run(options: argparse.Namespace) -> int:
    if options.cell:
        if options.answer is None:
            raise CellError("--cell belongs to the benchmark's own processes; it needs --answer.")
        from .child import answer_cell

        return answer_cell(options.cell, options.answer, standin=options.standin, peers=options.peers)
    if options.report:
        return _report(options.report, options.readme)
    if options.budget is not None and not options.budget > 0:
        raise CellError(f"--budget is {options.budget:g}; give the seconds that a run may take, for example 1500.")
    if options.readme:
        raise CellError("--readme belongs to --report FILE; name the result file.")
    cells = cell_lists.select(_cells(options), options.only)
    if options.list:
        print("\n".join(cell.id for cell in cells))
        return 0
    _check_peers(options.peers)
    if not options.standin:
        _check_card()
    purpose = _purpose(options)
    path = options.out or default_path(options.standin, purpose)
    if options.results and not options.out:
        path = options.results / path.name
    if options.standin and not options.out and not options.model:
        # A stand-in tries the code as it is now; only real measurements are worth going on with.
        path.unlink(missing_ok=True)
    store = Store(path, standin=options.standin, purpose=purpose)
    run_options = Options(options.budget, options.retry, options.standin, options.peers, options.cache)
    with tempfile.TemporaryDirectory(prefix="fps-cache-") as cache:
        run_options.cache = options.cache or cache
        print(f"{len(cells)} cells into {_named(path)}", flush=True)
        left = run(cells, store, run_options, say=lambda text: print(text, flush=True))
    if left:
        print(f"{len(left)} cells left by the budget, first {left[0]}; the same command goes on with them.")
    _report(path, False)
    ok = sum(store.data["cells"].get(cell.id, {}).get("status") == "ok" for cell in cells)
    return 0 if ok or not cells else 1


def _cells(options: argparse.Namespace) -> list[Cell]:
    if options.model:
        from .model_shapes import model_cells

        return model_cells(
            options.model, options.resolution, options.frames, options.schedule, options.linears, options.compiled,
            options.standin, options.slots,
        )  # fmt: skip
    if options.smoke:
        return cell_lists.smoke_cells(options.standin)
    if options.tune:
        return cell_lists.tune_cells(options.standin)
    if options.heads:
        return cell_lists.heads_cells(options.standin)
    if options.msfp:
        return cell_lists.msfp_cells(options.standin)
    if options.standin:
        return cell_lists.standin_cells()
    return cell_lists.quick_cells() if options.quick else cell_lists.standard_cells()


def _purpose(options: argparse.Namespace) -> str:
    for name in ("smoke", "tune", "heads", "msfp"):
        if getattr(options, name):
            return name
    return "benchmark"


def _check_peers(names: str) -> None:
    if names not in ("all", "none"):
        from .attention_cell import chosen

        chosen(names)


def default_path(standin: bool, purpose: str) -> Path:
    """Return where a run's results go: one file per card, commit, change to it and purpose, so that a rerun goes on
    with it."""
    if standin:
        return ROOT / "output" / "bench" / f"standin-{purpose}.json"
    from .environment import card_name, commit

    known = commit()
    word = "code" if known["dirty"] is None else "dirty"
    changes = f"-{word}-{known['changes']}" if known["changes"] else ""
    suffix = "" if purpose == "benchmark" else f"-{purpose}"
    return RESULTS / f"{card_name()}-{known['commit']}{changes}{suffix}.json"


def _report(path: Path, readme: bool) -> int:
    from .plots import draw
    from .readme import update
    from .report import table

    data = read_json(path)
    if readme and (why := published(data)):
        raise ResultError(f"{path.name} {why}, so it stays out of the README.")
    print(table(data))
    for plot in draw(data, path):
        print(f"wrote {_named(plot)}")
    if readme:
        update(ROOT / "README.md", (path, data))
        print("renewed the README's block")
    return 0


def _named(path: Path) -> str:
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if ROOT in path.parents else str(path)
