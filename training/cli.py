"""The trainer's command line: plan, train, resume, export."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import RunConfig
    from .distributed import World

EXIT_OK, EXIT_CONFIG, EXIT_NONFINITE, EXIT_STOPPED = 0, 2, 3, 75

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer and return the exit code.

    0: done; 2: bad configuration or input, one sentence on stderr; 3: loss repeatedly not finite; 75: stopped by a
    signal after saving.
    """
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    # Imported here and further down, so that --help and --dry-run answer without waiting for diffusers.
    from .config import ConfigError
    from .config_file import load_config, to_toml

    try:
        config = load_config(args.config, args.set)
    except ConfigError as error:
        return _fail(error, EXIT_CONFIG)
    if args.print_config:
        print(to_toml(config), end="")
        return EXIT_OK
    return _plan(config) if args.dry_run else _train(config, args.resume)


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


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


def _plan(config: RunConfig) -> int:
    from ..kernels.attention import BackendError
    from .distributed import DeviceError
    from .dry_run import describe_run
    from .names import ModelError

    try:
        print(describe_run(config))
    except (BackendError, DeviceError, ModelError) as error:
        return _fail(error, EXIT_CONFIG)
    return EXIT_OK


def _train(config: RunConfig, resume: str) -> int:
    from ..kernels.attention import BackendError
    from ..kernels.checkpoint import CheckpointError
    from .config import ConfigError
    from .data.errors import DataError
    from .distributed import DeviceError, open_world
    from .loop import NonFiniteError
    from .names import ModelError
    from .state import SnapshotError
    from .vae import VaeError

    world = None
    try:
        world = open_world(config.device)
        return _run(config, resume, world)
    except NonFiniteError as error:
        return _fail(error, EXIT_NONFINITE)
    except (
        BackendError, CheckpointError, ConfigError, DataError, DeviceError, ModelError, SnapshotError, VaeError
    ) as error:  # fmt: skip
        return _fail(error, EXIT_CONFIG)
    finally:
        if world is not None:
            world.close()


def _run(config: RunConfig, resume: str, world: World) -> int:
    from .export import export_run
    from .loop import fit
    from .prepare import check_backend, check_model, prepare_data
    from .stopping import StopFlag

    if not world.is_main:
        logging.getLogger().setLevel(logging.ERROR)
    check_model(config)
    check_backend(config, world)
    data = prepare_data(config, world)
    with StopFlag().on_signals() as stop:
        result = fit(
            config,
            data.train,
            data.val,
            resume=resume,
            empty_text=data.empty_text,
            world=world,
            stop=stop,
        )
    if result.stopped:
        _log.info("stopped at step %d after saving; go on with --resume auto", result.step)
        return EXIT_STOPPED
    if world.is_main:
        path = export_run(config, result, data.grid)
        held_out = f", held-out loss {result.validation.loss:.4f}" if result.validation else ""
        plot = Path(config.output.dir) / "loss.png"
        print(f"{result.step} steps in {result.seconds:.0f} s{held_out}; {path}; {plot}")
    return EXIT_OK
