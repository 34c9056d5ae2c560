"""Real widths, two blocks: file to trainer to file is bit-identical, and reading takes little beyond the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIZES = {
    "t2v-1.3b": ("t2v", 1536, 8960),
    "t2v-14b": ("t2v", 5120, 13824),
    "i2v-14b": ("i2v", 5120, 13824),
}
LIMIT = 2 << 10  # MiB beyond the model


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' account of memory")
@pytest.mark.parametrize("name", SIZES)
def test_a_round_trip_at_real_widths(tmp_path, name):
    kind, dim, ffn = SIZES[name]
    script = Path(__file__).with_name("measure_weights.py")
    done = subprocess.run(
        [sys.executable, str(script), kind, str(dim), str(ffn), "2", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-4000:]
    result = json.loads(lines[0].removeprefix("RESULT "))
    print(name, result)
    assert result["bit_identical"]
    assert result["reading_beyond_model_mib"] < LIMIT and result["writing_mib"] < LIMIT
    assert not list(tmp_path.iterdir())
