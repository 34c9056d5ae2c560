"""Launcher: ``python -m training.report FOLDER`` writes report.html and report.png of a run."""

import sys

from fpsattention.training.watch.cli import main

if __name__ == "__main__":
    sys.exit(main())
