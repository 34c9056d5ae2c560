"""The command line that tells what a file is: a Wan of which kind and size, a LoRA, a head table, a training state."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .failures import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 told, 2 neither weights nor a training state, with the reason."""
    parser = argparse.ArgumentParser(
        prog="python -m training.inspect", description="Tell what a file or folder is, from its headers alone."
    )
    parser.add_argument(
        "source", type=Path, metavar="FILE", help="weights (a file or folder), a LoRA, a head table, or a state"
    )
    args = parser.parse_args(argv)
    return exit_code(lambda: _tell(args.source))


def _tell(source: Path) -> int:
    from .inspection import describe

    lines = describe(source)
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        print(f"{key:<{width}}  {value}")
    return 0
