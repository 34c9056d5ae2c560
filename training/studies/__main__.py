"""Launcher of the study: ``python -m training.studies`` in the pack's folder."""

import sys

from fpsattention.training.studies.cli import main

if __name__ == "__main__":
    sys.exit(main())
