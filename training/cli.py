"""The trainer's command line: plan, train, resume, export."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .failures import exit_code

if TYPE_CHECKING:
    from .config import RunConfig
    from .distributed import World
    from .prepare import Prepared
    from .watch.preview import Previewer

EXIT_OK, EXIT_NONFINITE, EXIT_STOPPED = 0, 3, 75

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer and return the exit code.

    0: done; 2: bad configuration or input, no place to write, or a missing package, one sentence on stderr; 3: loss
    repeatedly not finite; 75: stopped by a signal after saving.
    """
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    return exit_code(lambda: _obey(args), nonfinite=EXIT_NONFINITE)


def _obey(args: argparse.Namespace) -> int:
    # Imported here and further down, so that --help and --dry-run answer without waiting for diffusers.
    from .config import ConfigError
    from .config_file import load_config, to_toml

    config = load_config(args.config, args.set)
    if args.print_config:
        print(to_toml(config), end="")
        return EXIT_OK
    fetch = args.config is None and _takes_the_demo_clip(config)
    if not args.dry_run and (args.world or args.gpu_memory):
        raise ConfigError("--world and --gpu-memory belong to --dry-run; add it, or start the run with torchrun")
    return _plan(config, fetch, args) if args.dry_run else _train(config, args.resume, fetch)


def _takes_the_demo_clip(config: RunConfig) -> bool:
    """Return True if the data are the embedded default's own clip, which needs nobody to bring it."""
    from .data.demo_clip import DEFAULT

    return not os.environ.get("CLIP") and config.data.videos == DEFAULT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.run", description=__doc__)
    parser.add_argument("--config", metavar="FILE", help="TOML file; default: the embedded tiny run")
    parser.add_argument(
        "--set", metavar="a.b=c", action="append", default=[], help="change one key, for example optim.steps=100"
    )
    parser.add_argument(
        "--resume", metavar="auto|none|PATH", default="none", help="go on from the newest or the named checkpoint"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and leave")
    parser.add_argument("--world", metavar="N", type=_processes, help="with --dry-run: plan for N processes")
    parser.add_argument(
        "--gpu-memory", metavar="GB", type=_gigabytes, help="with --dry-run: say whether it fits, or what to set"
    )
    parser.add_argument("--print-config", action="store_true", help="print the checked configuration and leave")
    return parser


def _processes(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 2**20:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of processes; write 1, 2, 4 ...")
    return int(text)


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 2**20:
        raise argparse.ArgumentTypeError(f"'{text}' is no GPU's memory; write its gigabytes, for example 24 or 80")
    return value


def _fetch_clip() -> None:
    from .data.demo_clip import demo_clip

    demo_clip()


def _plan(config: RunConfig, fetch: bool, args: argparse.Namespace) -> int:
    from .dry_run import describe_run

    if fetch:
        _fetch_clip()
    print(describe_run(config, world=args.world, gpu_memory=args.gpu_memory))
    return EXIT_OK


def _train(config: RunConfig, resume: str, fetch: bool) -> int:
    from .distributed import open_world

    world = open_world(config.device, config.parallel)
    try:
        return _run(config, resume, fetch, world)
    finally:
        world.close()


def _run(config: RunConfig, resume: str, fetch: bool, world: World) -> int:
    from .alone import alone
    from .assemble import check_spread
    from .prepare import check_backend, check_folders, check_model, prepare_data
    from .resume import check_start

    if not world.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    check_model(config)
    check_folders(config)
    check_start(config, resume)
    check_spread(config, world)
    check_backend(config, world)
    if fetch and world.is_main:
        _fetch_clip()
    world.barrier()
    data = prepare_data(config, world)
    with alone(config, world):
        return _work(config, resume, data, world)


def _work(config: RunConfig, resume: str, data: Prepared, world: World) -> int:
    from .export import export_run
    from .loop import fit
    from .stopping import StopFlag

    with StopFlag().on_signals() as stop:
        result = fit(
            config,
            data.train,
            data.val,
            resume=resume,
            empty_text=data.empty_text,
            world=world,
            stop=stop,
            previewer=_previewer(config, data, world),
        )
    if result.stopped:
        if result.saved == result.step:
            _log.info("stopped at step %d after saving; go on with --resume auto", result.step)
        else:
            there = "no state is on disk" if result.saved is None else f"the newest state is of step {result.saved}"
            _log.warning("stopped at step %d, which could not be saved; %s", result.step, there)
        return EXIT_STOPPED
    path = export_run(config, result.model, result.step, data.grid, world)
    if world.is_main:
        held_out = f", held-out loss {result.validation.loss:.4f}" if result.validation else ""
        report = Path(config.output.dir) / ("report.html" if config.output.report else "loss.jsonl")
        print(f"{result.step} steps in {result.seconds:.0f} s{held_out}; {path}; {report}")
    return EXIT_OK


def _previewer(config: RunConfig, data: Prepared, world: World) -> Previewer | None:
    if config.preview is None:
        return None
    from .distributed import pick_device
    from .prepare import vae_dtype
    from .vae import load_vae
    from .watch.preview import Previewer

    device = pick_device(config.device, world)
    dtype = vae_dtype(config, device)
    return Previewer(
        config, data.val, data.empty_text, lambda: load_vae(config.vae.path, dtype=dtype).to(device), world
    )
