"""The study of MSFP: its inputs, one arm on a tiny model, and the committed report."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fpsattention.training.config import ConfigError
from fpsattention.training.studies.heads_readme import markers
from fpsattention.training.studies.msfp import ARMS, DFA, MSFP, PLAIN, TABLES, TALORA, synthetic
from fpsattention.training.studies.msfp_report import summary, write_msfp_report

PACK = Path(__file__).resolve().parents[3]
RESULTS = PACK / "training" / "studies" / "results" / "msfp-cpu.json"


def results() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def test_synthetic_activations_are_those_of_the_paper():
    found = synthetic()
    silu = found["SiLU, deviation 3"]
    assert float(silu.min()) == pytest.approx(-0.27846, abs=1e-4) and float(silu.max()) > 9
    assert float(found["GELU (tanh), deviation 3"].min()) == pytest.approx(-0.17, abs=1e-3)
    assert abs(float(found["normal, deviation 1"].mean())) < 0.02
    assert torch.equal(found["normal, deviation 3"], synthetic()["normal, deviation 3"])


def test_the_summary_is_mean_spread_and_share_of_the_gap():
    loss = {PLAIN: (1.2, 1.4), MSFP: (1.1, 1.3), "lora": (1.1, 1.1), TALORA: (1.1, 1.1), DFA: (1.05, 1.05)}
    arms = [
        {"table": "w4", "arm": name, "seed": seed, "loss": pair[seed], "weighted": 2.0, "psnr": [30.0, 32.0 + seed]}
        for name, pair in loss.items()
        for seed in (0, 1)
    ]
    rows = summary({"full": {"loss": 1.0, "weighted": 2.0}, "arms": arms}, "w4")
    assert [row["arm"] for row in rows] == list(ARMS)
    assert rows[0]["excess"] == (pytest.approx(0.3), pytest.approx(0.2 / np.sqrt(2)))
    assert rows[-1]["closed"] == pytest.approx(1 - 0.05 / 0.3)
    assert rows[0]["psnr"] == (31.25, pytest.approx(0.5 / np.sqrt(2)))


def test_the_committed_report_is_what_the_results_give(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text((PACK / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    text, picture, _ = write_msfp_report(RESULTS, tmp_path, "cpu", readme)
    assert text.read_text(encoding="utf-8") == (PACK / "docs" / "studies" / "msfp.md").read_text(encoding="utf-8")
    assert readme.read_text(encoding="utf-8") == (PACK / "README.md").read_text(encoding="utf-8")
    assert picture.stat().st_size > 1000


def test_each_step_is_no_worse_in_the_held_out_loss():
    found = results()
    for table in TABLES:
        rows = summary(found, table)
        assert all(row["seeds"] == 3 for row in rows)
        for before, after in pairwise(rows):
            # Steps that differ by less than what seeds differ by are called equal.
            noise = max(before["loss"][1], after["loss"][1], 2e-4)
            assert after["loss"][0] <= before["loss"][0] + noise, (table, after["arm"])
        assert rows[-1]["loss"][0] < rows[0]["loss"][0] and rows[-1]["psnr"][0] > rows[0]["psnr"][0] + 3


def test_unsigned_formats_win_after_gates_and_symmetric_inputs_stay_signed():
    rows = results()["activations"]
    gated = [row for row in rows if row["kind"] == "ffn.2" or row["input"].startswith(("SiLU", "GELU"))]
    assert len(gated) >= 3 * 8 and all(row["unsigned"] < row["signed"] for row in gated if row["bits"] == 4)
    normal = [row for row in rows if row["input"].startswith("normal")]
    assert all(row["unsigned"] is None and not row["chosen"].startswith("u") for row in normal)


def test_bad_results_and_readmes_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there are no results"):
        write_msfp_report(tmp_path / "none.json", tmp_path)
    (tmp_path / "bad.json").write_text('{"arms": [], "activations": []}', encoding="utf-8")
    with pytest.raises(ConfigError, match="is no results file"):
        write_msfp_report(tmp_path / "bad.json", tmp_path)
    (tmp_path / "README.md").write_text("no marks", encoding="utf-8")
    with pytest.raises(ConfigError, match=markers("msfp")[0]):
        write_msfp_report(RESULTS, tmp_path, "cpu", tmp_path / "README.md")
