"""Launcher: ``python -m training.search`` finds a pattern for every head of a Wan model."""

import sys

from fpsattention.training.search.cli import main

if __name__ == "__main__":
    sys.exit(main())
