"""Launcher of the machine-code check: ``python -m kernels.machine_code`` in the pack's folder."""

import sys

from fpsattention.kernels.bench.machine_code import main

if __name__ == "__main__":
    sys.exit(main())
