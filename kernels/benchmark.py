"""Measure the attention on this machine: ``python -m kernels.benchmark`` (see ``kernels/README.md``)."""

import sys

from fpsattention.kernels.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
