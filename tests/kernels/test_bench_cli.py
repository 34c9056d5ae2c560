"""The command line: one sentence for what cannot be, and the whole path on a machine without a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.kernels.bench.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "nonsense"], "no cell's name holds 'nonsense'"),
        (["--budget", "0"], "--budget is 0"),
        (["--report", "no/such.json"], "there is no result file no/such.json"),
        (["--readme"], "--readme belongs to --report FILE"),
        (["--standin", "--out", "kernels/results/x.json"], "never written under kernels/results"),
        (["--standin", "--peers", "sage9", "--out", "x.json"], "'sage9' is no contestant"),
        (["--model", "wan2.1-14b", "--resolution", "8k"], "'8k' is no resolution"),
        (["--model", "wan2.1-14b", "--frames", "80"], "4n + 1 frames, got 80"),
        (["--model", "wan2.1-14b", "--schedule", "0.5 fp9 x1"], "neither a density such as 15%"),
        (["--cell", "{}"], "--cell belongs to the benchmark's own processes"),
    ],
)
def test_odd_flags_get_one_sentence(arguments, says, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not (ROOT / "x.json").exists()


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "kernels.benchmark", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)


def test_listing_imports_no_torch():
    code = (
        "import sys; from fpsattention.kernels.bench.cli import main; main(['--list'])\n"
        "heavy = {'torch', 'triton', 'diffusers'} & set(sys.modules); sys.exit(len(heavy))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == "ceilings"


def test_without_a_card_a_run_says_so_and_starts_nothing(tmp_path):
    done = start("--only", "ceilings", "--out", str(tmp_path / "r.json"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "torch finds no CUDA device" in done.stderr and "--standin" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_standin_runs_end_to_end(tmp_path):
    """Every contestant checked and timed on tiny tensors: ours in Triton's interpreter, torch's as they are."""
    pytest.importorskip("triton")
    path = tmp_path / "standin.json"
    peers = "triton-fp8-64,triton-bf16-64,reference-64,sdpa,flex-128"
    done = start("--standin", "--only", "ceilings,fwd-d25", "--peers", peers, "--out", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(path.read_text())
    assert data["standin"] is True and "STAND-IN" in done.stdout
    assert data["cells"]["ceilings"]["status"] == "ok"
    cell = data["cells"]["standin-fwd-d25"]
    assert cell["status"] == "ok", cell
    for name in peers.split(","):
        entry = cell["contestants"][name]
        assert entry["status"] == "ok" and entry["ms"] > 0 and entry["error"] <= entry["tolerance"], (name, entry)
    assert cell["contestants"]["cudnn"]["reason"] == "needs a CUDA card"
    stages = cell["contestants"]["triton-fp8-64"]["stages"]["share"]
    assert stages["quantize"] > 0 and stages["attention"] > 0
    assert cell["contestants"]["sdpa"]["notes"]["picked"]
    assert not list((ROOT / "kernels" / "results").glob("*standin*"))


def test_a_whole_step_stands_in(tmp_path):
    pytest.importorskip("diffusers")
    path = tmp_path / "step.json"
    done = start("--standin", "--model", "wan2.1-1.3b", "--schedule", "fast", "--linears", "fp8", "--out", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    (cell,) = json.loads(path.read_text())["cells"].values()
    assert cell["status"] == "ok" and cell["cell"]["model"] == "tiny"
    for name in ("dense, bf16 linears", "sparse, bf16 linears"):
        parts = cell["variants"][name]["parts_ms"]
        assert all(parts[part] > 0 for part in ("self-attention", "cross-attention", "linears"))
        assert sum(v for k, v in parts.items() if k != "total") <= parts["total"] * 1.001
    assert sum(phase["share"] for phase in cell["phases"]) == pytest.approx(1.0)
    assert "4.96x" in done.stdout
