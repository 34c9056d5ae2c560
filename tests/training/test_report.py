"""The report: what it compares, that it needs nothing from outside, and what it refuses."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from fpsattention.training.journal import Journal
from fpsattention.training.watch.cli import main
from fpsattention.training.watch.curves import excess_over, excess_per_sigma, series, trailing_mean
from fpsattention.training.watch.preview_files import last_previews
from fpsattention.training.watch.report import ReportError, write_report

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def records(count: int, gap: float = 0.0, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    found = []
    for step in range(count):
        sigma = rng.uniform(0.05, 1, 4).round(5).tolist()
        losses = [(1 + gap) * (2 - s) for s in sigma]
        found.append({
            "step": step, "loss": float(np.mean(losses)), "losses": losses, "sigma": sigma, "norm": 0.5, "lr": 1e-4,
            "samples": [[0, step]] * 4, "phase": [int(s < 0.5) for s in sigma], "seconds": 2.0, "data_seconds": 0.01,
            "tokens": 400, "flops": 1e12, "density": 0.2, "memory": 1 << 30, "skipped": 0, "block_norms": [0.1, 0.2],
        })  # fmt: skip
    return found


def write(folder, entries, **about) -> None:
    journal = Journal(folder, about={"name": folder.name, "steps": 60, **about})
    for entry in entries:
        journal.add(entry)
    journal.close()


def test_the_excess_over_a_paired_dense_run_is_exact():
    run, dense = records(50, gap=0.03), records(60)
    excess = excess_over(run, dense)
    assert excess.paired and len(excess.steps) == 50
    assert excess.values == pytest.approx(0.03)
    assert {round(value, 6) for value, _, _ in excess_per_sigma(run, dense).values()} == {0.03}
    other = excess_over(run, records(60, seed=1))
    assert not other.paired and other.same == 0 and excess_per_sigma(run, records(60, seed=1)) == {}
    assert other.last[1] > excess.last[1]
    assert excess_over(run, [{**r, "step": r["step"] + 1000} for r in dense]) is None


def test_smoothing_is_the_mean_of_the_last_values():
    assert trailing_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert series([{"step": 0, "loss": None}, {"step": 1, "loss": 2.0}], "loss").steps.tolist() == [2]


def test_a_report_holds_everything_itself(tmp_path):
    run = records(40, gap=0.05)
    run[7] |= {"loss": None, "norm": None, "losses": None, "skipped": 1}
    run[20]["validation"] = 1.25
    write(tmp_path / "dense", records(40))
    config = {"seed": 3, "attention": {"schedule": "0 dense"}, "lora": None, "model": {"path": "<b>&.safetensors"}}
    write(
        tmp_path / "joint run", run, dense_run=str(tmp_path / "dense"), peak_flops=1e13, config=config,
        schedule="0.5 fp8 x1 all 2 2\n0 dense",
    )  # fmt: skip
    previews = tmp_path / "joint run" / "previews"
    previews.mkdir()
    (previews / "step-000020.png").write_bytes(PIXEL)
    (previews / "step-000020_0_seed1.mp4").write_bytes(b"video")
    (previews / "step-000020.json").write_text(json.dumps({"said": "PSNR 20 dB"}))
    page = write_report(tmp_path / "joint run").read_text(encoding="utf-8")
    for words in (
        "Training loss", "Excess over the dense run", "+5.00%", "Excess by noise level", "Loss per phase", "Held-out",
        "Loss per noise level", "Gradient norm per block", "Learning rate", "MFU", "Waiting for data", "Peak memory",
        "step 40 of 60", "&lt;b&gt;&amp;.safetensors", "PSNR 20 dB", "data:video/mp4;base64,", "σ ≥ 0.50  fp8 x1",
    ):  # fmt: skip
        assert words in page, words
    links = re.findall(r'(?:src|href)="([^"]{1,30})', page)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert (tmp_path / "joint run" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert last_previews(tmp_path / "joint run").step == 20


def test_an_old_or_very_short_log_still_makes_a_report(tmp_path):
    (tmp_path / "loss.jsonl").write_text('{"step": 0, "loss": 1.0, "lr": 0.1}\n{"step": 1, "lo')
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Training loss" in page and "1 step<" in page and "Excess" not in page


def test_a_dense_run_that_is_gone_is_named_and_left_out(tmp_path, caplog):
    write(tmp_path / "run", records(5), dense_run=str(tmp_path / "gone"))
    assert write_report(tmp_path / "run") is not None
    assert "no comparison" in caplog.text and "gone: no such folder" in caplog.text
    with pytest.raises(ReportError, match="gone: no such folder; name the output folder"):
        write_report(tmp_path / "run", dense_run=tmp_path / "gone")


def test_the_command_says_in_one_sentence_what_is_wrong(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([str(tmp_path)]) == 2
    assert "has no loss.jsonl with a step in it" in capsys.readouterr().err
    write(tmp_path, records(3))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")
