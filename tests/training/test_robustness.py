"""A short form of robustness.py: what a run survives, tried for real in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("robustness.py")


@pytest.mark.slow
def test_a_run_survives_kills_a_full_disk_and_nan(tmp_path):
    arguments = ["--kills", "4", "--parts", "disk,nan,kills", "--write", str(tmp_path / "table")]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())
    assert len(rows) == 5 and all(row["passed"] is not False for row in rows)
    assert rows[-1]["figures"]["lost"] == 0 and rows[-1]["figures"]["equal"]
    assert (tmp_path / "table.md").read_text().count("| yes |") >= 3
