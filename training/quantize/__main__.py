"""Runs as ``python -m training.quantize``."""

import sys

from fpsattention.training.quantize.cli import main

if __name__ == "__main__":
    sys.exit(main())
