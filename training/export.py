"""Launcher of the export: ``python -m training.export STEP_OR_RUN_OR_MODEL``, one file that ComfyUI loads."""

import sys

from fpsattention.training.export_cli import main
from fpsattention.training.export_file import export as export
from fpsattention.training.export_file import export_run as export_run

if __name__ == "__main__":
    sys.exit(main())
