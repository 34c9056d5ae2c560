"""A run is the same on one, two and four processes: sharded, copied, sharing tokens, offloaded, recomputed.

Reduction order is all that may differ: 1e-7 in float32 sums. FP8 rounds, so a sum that lands on the other side of a
rounding border moves a product by 1/16; over six steps that stays below 1e-5 of the loss at a fine-tune's rate.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.training.config import ParallelSection
from fpsattention.training.distributed import DeviceError, open_world

CHILD = Path(__file__).with_name("parallel_child.py")
ASSET = Path(__file__).parents[2] / "training" / "assets" / "wan2.1-tiny-t2v.safetensors"
SAME = 1e-5
# Where linear layers round to FP8 and moments to 8 bits, every step rounds the differences of the last anew.
ROUNDED = {"8-bit": 1e-3}

# name -> (what is changed, the scenario it must equal, the processes it is for)
SCENARIOS = {
    "plain": ({}, "plain", (1, 2, 4)),
    "copies": ({"parallel": {"shard": 2}}, "plain", (4,)),
    "tokens": ({"parallel": {"sequence": 2}}, "plain", (2, 4)),
    "offload": ({"parallel": {"offload": True}}, "plain", (1, 2)),
    "full": ({"activation_checkpointing": "full"}, "plain", (1,)),
    "attention": ({"activation_checkpointing": "attention", "parallel": {"sequence": 2}}, "plain", (2,)),
    "recipe": (
        {
            "loss": {"teacher": 0.5},
            "ramp": {"steps": 4, "stages": 2, "fp8_after": 2},
            "flow": {"stratified": True, "text_dropout": 0.3},
            "ema": {"decay": 0.9},
        },
        "recipe",
        (1, 2),
    ),
    "lora": ({"lora": {"rank": 4}, "loss": {"teacher": 0.5}, "dtype": "bf16"}, "lora", (1, 2)),
    "8-bit": (
        {"optim": {"name": "adamw-8bit"}, "dtype": "bf16", "fp8_linears": {"skip_first": 0, "skip_last": 1}},
        "8-bit",
        (1, 2),
    ),
}


def _merged(table: dict, changes: dict) -> dict:
    table = copy.deepcopy(table)
    for key, value in changes.items():
        table[key] = {**table.get(key, {}), **value} if isinstance(value, dict) else value
    return table


def _run(processes: int, table: dict, folder: Path) -> dict[str, dict]:
    table["optim"] |= {"lr": 1e-4, "steps": 4, "batch": 2, "global_batch": 4}
    table["model"]["dim"] = 256  # two heads, to share out
    scenarios = []
    for name, (changes, _, for_processes) in SCENARIOS.items():
        if processes in for_processes:
            config = _merged(table, changes)
            config["output"]["dir"] = str(folder / name)
            config["output"]["report"] = False
            config["checkpoint"] |= {"dir": str(folder / name / "checkpoints"), "every": 0}
            scenarios.append({"name": name, "config": config})
    file = folder / "scenarios.json"
    file.write_text(json.dumps(scenarios))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(CHILD), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("found ")]
    assert [row["name"] for row in rows] == [scenario["name"] for scenario in scenarios]
    return {row["name"]: row for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_is_the_same_on_one_two_and_four_processes(table, tmp_path, show_at_end):
    found: dict[int, dict[str, dict]] = {}
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        folder.mkdir()
        found[processes] = _run(processes, copy.deepcopy(table), folder)
    for processes, rows in found.items():
        for name, row in rows.items():
            like, where, same = found[1][SCENARIOS[name][1]], f"{name} on {processes}", ROUNDED.get(name, SAME)
            assert (row["order"], row["sigmas"]) == (like["order"], like["sigmas"]), where
            assert row["losses"] == pytest.approx(like["losses"], rel=same), where
            assert row["norms"] == pytest.approx(like["norms"], rel=100 * same), where
            assert row["block_norms"] == pytest.approx(like["block_norms"], rel=100 * same), where
            assert row["validation"] == pytest.approx(like["validation"], rel=same), where
            assert row["keys"] == like["keys"], where
            # K's bias has no gradient but rounding (softmax does not see it), which Adam makes a step of.
            assert row["sums"] == pytest.approx(like["sums"], rel=10 * same, abs=1e-6), where
            shards = 1 if processes == 1 else 2 if name == "copies" else processes
            # No process holds more than its share; biases and norms of fewer rows than processes round up.
            assert max(row["held"]) <= row["whole"] / shards * 1.02, where
            assert sum(row["held"]) >= row["whole"], where
    held = [
        f"{processes} processes: {rows['plain']['whole']:,} parameters, held by each: "
        + ", ".join(f"{n:,}" for n in rows["plain"]["held"])
        for processes, rows in found.items()
    ]
    show_at_end("shards", "\n".join(held))


@pytest.mark.parametrize("section, words", [({"sequence": 2}, "sequence is 2"), ({"shard": 3}, "shard is 3")])
def test_processes_that_do_not_divide_are_refused(section, words):
    with pytest.raises(DeviceError, match=f"parallel.{words}, but there are 1 processes"):
        open_world("cpu", ParallelSection(**section))
