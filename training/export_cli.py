"""The command line of the export."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from .failures import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 done (the file's path is printed), 2 unusable input or no place to write to."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    return exit_code(lambda: _tell(_export(args)))


def _tell(path: Path) -> int:
    print(f"{path} ({path.stat().st_size / 2**20:,.0f} MiB)")
    return 0


def _export(args: argparse.Namespace) -> Path:
    from .config import ConfigError
    from .export_file import convert
    from .export_saved import export_state, find_state

    if args.out is not None and args.out.is_dir():
        raise ConfigError(
            f"--out {args.out}: is a folder; name the file in it, for example {args.out / 'my.safetensors'}"
        )
    state = find_state(args.source)
    if state is not None:
        return export_state(state, args.out, args.dtype, average=not args.no_average)
    if args.out is None:
        name = args.source.expanduser().resolve()  # "." has none
        args.out = (name.stem if name.is_file() else name.name or "model") + f"-{args.dtype or 'bf16'}.safetensors"
    if Path(args.out).exists() and Path(args.out).resolve() == args.source.resolve():
        raise ConfigError(f"{args.out}: is what is read; write to another file with --out")
    return convert(args.source, args.out, args.dtype or "bf16")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description="Write one file that ComfyUI loads: of a saved training state, or of another Wan file or folder.",
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a state (step-000250), a run's folder (its newest state), or a Wan file or folder to convert",
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp32", "fp8"), help="default: the run's output.dtype, bf16 for a conversion"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: beside the run's own file, with the step")
    parser.add_argument("--no-average", action="store_true", help="the trained weights, not their running mean")
    return parser
