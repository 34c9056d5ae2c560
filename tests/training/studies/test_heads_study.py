"""The study of head patterns: what it asks, what it keeps, its report from results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fpsattention.kernels.headsearch.candidates import read_candidates
from fpsattention.kernels.headsearch.search import OUTPUT, Request, step_bands
from fpsattention.kernels.patterns import Full, Window
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.config import ConfigError
from fpsattention.training.model import load_model
from fpsattention.training.search.cli import ASSETS
from fpsattention.training.studies import heads
from fpsattention.training.studies.cli import PACK
from fpsattention.training.studies.heads import HeadStudy, saved_work
from fpsattention.training.studies.heads_report import write_heads_report
from fpsattention.training.studies.sizes import CPU
from fpsattention.training.studies.work import Deadline, OutOfTimeError

RESULTS = PACK / "training" / "studies" / "results" / "heads-cpu.json"


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "STEPS", 2)
    generator = torch.Generator().manual_seed(0)
    samples = [
        {"latent": torch.randn((16, 4, 8, 8), generator=generator), "text": torch.zeros(1, 4096)} for _ in range(3)
    ]
    model = load_model(ASSETS / "wan2.1-tiny-t2v.safetensors").requires_grad_(False).eval()
    said = []
    made = HeadStudy(CPU, model, samples, samples[0]["text"], tmp_path, {"test": 1}, Deadline(None), said.append)
    made.said = said
    return made


def test_a_question_is_asked_once_and_the_time_can_end(study):
    calls = []
    assert study.ask("sum", {"n": 1}, lambda: calls.append(1) or 5) == 5
    assert study.ask("sum", {"n": 1}, lambda: calls.append(1) or 6) == 5 and len(calls) == 1 and len(study.said) == 1
    study.stop.request()
    assert study.ask("sum", {"n": 1}, lambda: 7) == 5
    with pytest.raises(OutOfTimeError):
        study.ask("sum", {"n": 2}, lambda: 7)


def test_errors_are_against_the_dense_output(study):
    assert study.output_error(study.uniform(Window(None, None, None))) < 1e-5
    errors = [study.output_error(study.uniform(w)) for w in (Window(None, 2, 2), Window(None, 4, 2))]
    assert errors[0] > errors[1] > 0
    found = study.online("topk 1.0")
    assert found["density"] == 1.0 and found["error"] < 1e-5
    assert study.online("topk 0.25")["density"] == pytest.approx(0.25, abs=0.03)


def test_windows_are_all_shapes_of_a_density(study):
    every = study.windows(0, 1)
    assert len(every) == np.prod(study.tiling.pieces) and max(d for d, _ in every) == 1.0
    near = study.windows(0.2, 0.3)
    assert near and all(0.2 <= d <= 0.3 for d, _ in near) and len({w for _, w in near}) == len(near)


def test_a_search_meets_its_budget_and_its_table_runs(study):
    request = Request(
        Schedule.parse("0 bf16 - heads"), step_bands(study.sampler.sigmas[:-1]),
        tuple(read_candidates(("skip", "window all 2 2", "window 2 all all"))), error=OUTPUT, budget=0.4,
    )  # fmt: skip
    search = study.search(request, 1)
    table = search.table()
    assert (search.weights > 0).all() and 0.1 < table.made["mean_density"] <= 0.4
    assert not all(isinstance(p, Full) for p in table.patterns) and study.output_error(study.of_table(table)) > 0


def test_saved_work_is_read_off_the_searched_points():
    uniform = {
        "0.5": [{"window": "a", "density": 0.5, "error": 0.1}],
        "0.1": [{"window": "b", "density": 0.1, "error": 0.9}],
    }
    budgets = [
        {"attention": "bf16", "by": "output", "error": e, "density": d}
        for d, e in ((0.5, 0.05), (0.25, 0.2), (0.1, 0.8))
    ]
    budgets.append({"attention": "fp8", "by": "output", "error": 0.001, "density": 0.01})
    first, second = saved_work(uniform, budgets)
    # Half-way between 0.05 and 0.2 in log(error).
    assert first["density"] == pytest.approx(0.375) and first["saved"] == pytest.approx(0.25) and not first["at_most"]
    assert second["density"] == 0.1 and second["at_most"] and second["saved"] == pytest.approx(0.0)


def test_the_committed_report_is_what_the_results_give(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text((PACK / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    text, *pictures = write_heads_report(RESULTS, tmp_path, "cpu", readme)
    assert text.read_text(encoding="utf-8") == (PACK / "docs" / "studies" / "head-patterns.md").read_text(
        encoding="utf-8"
    )
    assert readme.read_text(encoding="utf-8") == (PACK / "README.md").read_text(encoding="utf-8")
    assert all(picture.stat().st_size > 1000 for picture in pictures)
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    # What the study is there to show: better than the best uniform window, at no more density.
    for row in found["budgets"]:
        assert row["density"] <= row["window_density"] + 1e-9
        if row["by"] == OUTPUT:
            assert row["error"] < row["window_error"], row["target"]


def test_bad_results_are_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there are no results"):
        write_heads_report(tmp_path / "none.json", tmp_path)
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no results file"):
        write_heads_report(tmp_path / "bad.json", tmp_path)
