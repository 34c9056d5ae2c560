"""Two processes of torchrun against one: optimizers, adapters, FP8 layers and the average on sharded parameters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sharded_parts.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], env=env, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    return json.loads(lines[-1].removeprefix("RESULT "))


def case(results, name: str) -> dict:
    assert "error" not in results[name], results[name]["error"]
    return results[name]


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_optimizers_step_shards_as_one_process_steps_the_whole(results, name):
    found = case(results, "optimizers")[name]
    assert found["share"] == 0.5
    assert found["losses"][1] == pytest.approx(found["losses"][0], rel=1e-5)
    # Sums over two processes round differently, and Adam turns that into parts of a rate where gradients are tiny.
    assert found["weights"] < 1e-4
    assert found["same_kinds"] and (found["eight_bit"] > 0) == (name == "adamw-8bit")


def test_adapters_on_a_frozen_narrow_base(results):
    found = case(results, "lora")
    assert found["losses"][1] == pytest.approx(found["losses"][0], rel=1e-5)
    assert found["losses"][0][-1] < found["losses"][0][0]
    assert found["names"] and found["state"] < 1e-4
    assert found["off"] == 0.0
    assert found["meta"] == found["loaded"] == 0.0


def test_the_average_of_shards(results):
    found = case(results, "ema")
    assert found["averages"] < 1e-4 and found["trained"] < 1e-4
    # Inside, the model computes with the averages although a forward before left gathered weights; outside it does not.
    assert found["inside"] < 1e-5 and found["weights"] < 1e-4
    assert found["moved"] > 0.1 and found["after"] == 0.0


def test_fp8_layers_under_sharding(results):
    found = case(results, "fp8")
    assert found["names"]
    # Another order of a sum moves a number across a rounding boundary of e4m3 now and then.
    assert found["losses"][1] == pytest.approx(found["losses"][0], rel=1e-3)
    assert found["weights"] < 0.02
