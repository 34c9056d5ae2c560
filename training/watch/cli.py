"""The report of a run, made from its output folder: of one that ended, or of one that is running."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and return the exit code: 0 done, 2 no report can be made (one sentence)."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.add_argument("folder", help="output folder of a run (output.dir)")
    parser.add_argument("--dense", metavar="FOLDER", help="output folder of a dense run to compare with")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    from .report import ReportError, write_report

    try:
        path = write_report(args.folder, dense_run=args.dense)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if path is None:
        return 2
    print(path)
    return 0
