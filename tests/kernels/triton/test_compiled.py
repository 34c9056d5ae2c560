"""The Triton forward compiled ahead of time for sm_89 and sm_90: tensor-core instructions, spills, registers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# Registers per thread with Triton 3.7.1, head dimension 128. A newer compiler may need a few more; 255 is the
# hardware's limit, where the next one would spill.
REGISTERS = {
    "bf16, sm_89, 64 slots": 204,
    "fp8 tile scales, sm_89, 64 slots": 239,
    "fp8 token scales, sm_89, 64 slots": 255,
    "bf16, sm_89, 128 slots": 214,
    "fp8 tile scales, sm_89, 128 slots": 255,
    "fp8 token scales, sm_89, 128 slots": 255,
    "bf16, sm_90, 64 slots": 199,
    "fp8 tile scales, sm_90, 64 slots": 255,
    "fp8 token scales, sm_90, 64 slots": 255,
    "bf16, sm_90, 128 slots": 185,
    "fp8 tile scales, sm_90, 128 slots": 250,
    "fp8 token scales, sm_90, 128 slots": 254,
}
SLACK = 8
# What one program may take of an SM's shared memory.
SHARED = {"sm_89": 99 * 1024, "sm_90": 227 * 1024}
MATRIX = {
    ("bf16", "sm_89"): "HMMA.16816.F32.BF16",
    ("bf16", "sm_90"): "HGMMA.64x128x16.F32.BF16",
    ("fp8", "sm_89"): "QMMA.16832.F32.E4M3.E4M3",
    ("fp8", "sm_90"): "QGMMA.64x128x32.F32.E4M3.E4M3",
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Compile everything once, in a process that no interpreter setting reaches, with an empty cache."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "compile_report.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_variant_is_listed(reports):
    assert set(reports) == set(REGISTERS)


@pytest.mark.parametrize("name", REGISTERS)
def test_machine_code(reports, name):
    report = reports[name]
    variant, target, _ = name.split(", ")
    assert MATRIX[variant.split()[0], target] in report["matrix"]
    # One kind of matrix instruction only: nothing is silently multiplied in another precision.
    assert {m.split(".")[0] for m in report["matrix"]} == {MATRIX[variant.split()[0], target].split(".")[0]}
    assert report["counts"].get("STL", 0) == report["counts"].get("LDL", 0) == report["local"] == report["stack"] == 0
    assert report["registers"] <= min(REGISTERS[name] + SLACK, 255)
    assert report["shared"] <= SHARED[target]
    # K and V go to shared memory asynchronously, not through registers.
    assert report["counts"].get("LDGSTS", 0) >= 8
