"""Launcher of the trainer: ``python -m training.run`` in the pack's folder, ``fpsattention.training.run`` installed."""

import sys

from fpsattention.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
