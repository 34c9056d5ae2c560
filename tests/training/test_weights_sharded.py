"""A model that FSDP2 shards: each process reads its rows only, and whole tensors come back on rank 0 alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fpsattention.training.names import WanShape
from safetensors import safe_open
from safetensors.torch import save_file

from .wan_files import random_state


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "copies"), [(2, 1), (3, 1), (4, 2)])
def test_each_process_reads_only_its_own_rows(tmp_path, processes, copies):
    shape = WanShape.of_kind("t2v", 128, 96, 1, text_dim=16)
    state = random_state(shape)
    save_file(state, tmp_path / "a.safetensors")
    script = Path(__file__).with_name("weights_parts.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "a.safetensors"), str(copies)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(lines[0].removeprefix("RESULT "))
    assert result["equal"] and result["velocity"]
    for rank, (read, local, none_gathered, none_written) in enumerate(result["counts"]):
        assert read == local
        assert none_gathered == none_written == (rank > 0)
    assert sum(read for read, *_ in result["counts"]) == copies * result["parameters"]
    assert "could not be written" in result["failure"]
    with safe_open(tmp_path / "sharded.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), state[name].bfloat16()) for name in state)
