"""The trainer's command line: plan, train, resume, export."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_OK, EXIT_CONFIG, EXIT_NONFINITE, EXIT_STOPPED = 0, 2, 3, 75

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer and return the exit code: 0 done, 2 bad configuration or input, 3 repeatedly not finite, 75
    stopped by a signal after saving."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # Imported here, so that --help answers at once.
    from ..kernels.attention import BackendError
    from ..kernels.checkpoint import CheckpointError, HeaderError
    from ..kernels.schedule import ScheduleError
    from .config import ConfigError
    from .config_file import load_config, to_toml
    from .data.errors import DataError
    from .loop import NonFiniteError
    from .names import ModelError
    from .state import SnapshotError
    from .vae import VaeError

    expected = (
        BackendError, CheckpointError, ConfigError, DataError, HeaderError, ModelError, ScheduleError, SnapshotError,
        VaeError,
    )  # fmt: skip
    try:
        config = load_config(args.config, args.set)
        if args.print_config:
            print(to_toml(config), end="")
            return EXIT_OK
        if args.dry_run:
            from .dry_run import describe_run

            print(describe_run(config))
            return EXIT_OK
        return _train(config, args.resume)
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NONFINITE
    except expected as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIG


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
    parser.add_argument("--print-config", action="store_true", help="print the checked configuration and leave")
    return parser


def _train(config, resume: str) -> int:
    from .distributed import open_world
    from .export import export_run
    from .loop import fit
    from .prepare import check_backend, data_grid, prepare_data
    from .stopping import StopFlag

    world = open_world(config.device)
    try:
        if not world.is_main:
            logging.getLogger().setLevel(logging.ERROR)
        check_backend(config, world)
        data = prepare_data(config, world)
        with StopFlag().on_signals() as stop:
            result = fit(
                config,
                data.dataset.train,
                data.dataset.val,
                resume=resume,
                empty_text=data.empty_text,
                world=world,
                stop=stop,
            )
        if result.stopped:
            _log.info("stopped at step %d after saving; go on with --resume auto", result.step)
            return EXIT_STOPPED
        if world.is_main:
            path = export_run(config, result, data_grid(config.data))
            held_out = f", held-out loss {result.validation.loss:.4f}" if result.validation else ""
            plot = Path(config.output.dir) / "loss.png"
            print(f"{result.step} steps in {result.seconds:.0f} s{held_out}; {path}; {plot}")
        return EXIT_OK
    finally:
        world.close()
