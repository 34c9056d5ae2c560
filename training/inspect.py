"""Launcher: what a file is. ``python -m training.inspect FILE``."""

import sys

from fpsattention.training.inspect_cli import main

if __name__ == "__main__":
    sys.exit(main())
