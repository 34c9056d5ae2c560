"""The command line that tells what a file is: a Wan of which kind and size, a LoRA, or a training state."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 told, 2 neither weights nor a training state, with the reason."""
    parser = argparse.ArgumentParser(
        prog="python -m training.inspect", description="Tell what a file or folder is, from its headers alone."
    )
    parser.add_argument("source", type=Path, metavar="FILE", help="weights (a file or folder), a LoRA, or a state")
    args = parser.parse_args(argv)
    try:
        from .failures import expected_errors, sentence

        expected = expected_errors()
    except ImportError as error:
        print(
            f"error: {error}; install what the trainer needs: pip install -r training/requirements.txt", file=sys.stderr
        )
        return 2
    from .inspection import describe

    try:
        lines = describe(args.source)
    except expected as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        print(f"{key:<{width}}  {value}")
    return 0
