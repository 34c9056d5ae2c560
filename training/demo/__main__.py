"""Launcher: ``python -m training.demo``."""

import sys

from fpsattention.training.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
