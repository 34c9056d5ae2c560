"""Launcher: ``python -m training.evaluate`` compares attentions on the same prompts and seeds."""

import sys

from fpsattention.training.evaluation.cli import main

if __name__ == "__main__":
    sys.exit(main())
