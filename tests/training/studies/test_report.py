"""The report: its figures, what it refuses to say, and that the committed one is what the committed results say."""

from __future__ import annotations

import json

import pytest
from fpsattention.training.config import ConfigError
from fpsattention.training.studies import plan, tables
from fpsattention.training.studies.cli import PACK
from fpsattention.training.studies.plan import Videos
from fpsattention.training.studies.quantization import FORMS, GRANULARITIES, INPUTS
from fpsattention.training.studies.report import markdown, write_report
from fpsattention.training.studies.results import Results, load_results
from fpsattention.training.studies.sizes import CPU
from fpsattention.training.studies.statistics import figures, mean_and_spread, paired_interval

LOSSES = {"base": 1.0, "A": 1.1, "D": 0.9, "B": 1.0, "C": 0.93}
COMMITTED = PACK / "training" / "studies" / "results" / "cpu.json"


def test_the_share_is_taken_against_both_controls():
    found = figures(LOSSES)
    assert found.closed == pytest.approx(0.7)
    assert (found.free, found.control, found.joint) == pytest.approx((0.1, 1 / 9, 0.03 / 0.9))


@pytest.mark.parametrize(
    ("losses", "reason"),
    [({"A": 1.02}, "below 3%"), ({"B": 0.9}, "not worse"), ({"A": 1.0}, "below 3%")],
)
def test_a_share_of_nothing_is_refused_with_the_reason(losses, reason):
    found = figures({**LOSSES, **losses})
    assert found.closed is None
    assert reason in found.refusal


def test_intervals_are_paired():
    first = [10.0, 20.0, 30.0, 40.0]
    mean, low, high = paired_interval(first, [value + 1 for value in first])
    assert (mean, low, high) == pytest.approx((1, 1, 1))
    assert paired_interval(first, [11.0, 19.0, 32.0, 39.0]) == paired_interval(first, [11.0, 19.0, 32.0, 39.0])
    with pytest.raises(ValueError, match="two or more pairs"):
        paired_interval([1.0], [2.0])
    assert mean_and_spread([1.0, 3.0]) == pytest.approx((2, 2**0.5))
    assert mean_and_spread([1.0]) == (1.0, 0.0)


def invented(parts=plan.PARTS) -> Results:
    found = {}
    for job in plan.jobs(CPU, parts):
        if isinstance(job, plan.Train):
            found[job.key] = {"losses": [1.0] * 40}
        elif isinstance(job, plan.Measure):
            letter = "base" if job.arm is None and job.window == "dense" else "A"
            if job.arm is not None:
                letter = "C" if job.arm.window != "dense" else ("D" if job.window == "dense" else "B")
            loss = LOSSES[letter]
            found[job.key] = {"loss": loss, "per_sigma": {f"{s:g}": loss for s in job.sigmas}, "density": 0.25}
        elif isinstance(job, Videos):
            shift = dict(zip(plan.ORDERS, (0.0, 0.01, 1.0)))[job.arm.window]
            psnr = [20 + i % 5 + shift * (1 if shift > 0.5 else (-1) ** i) for i in range(job.count)]
            found[job.key] = {"psnr": psnr, "density": 0.25}
        else:
            one = {"cosine": 0.99, "mse": 1e-3, "snr": 20.0}
            names = [f"{f}, {g}, {s}" for f in FORMS for g in GRANULARITIES for s in ("dense", "sparse")]
            names += ["sparsity alone", "FP8 attention, dense", "FP8 attention, sparse, against dense"]
            found[job.key] = {
                "inputs": {kind: {"logits": {"std": 2.0}, **dict.fromkeys(names, one)} for kind in INPUTS}
            }
    facts = {
        "size": "cpu", "date": "2000-01-01", "commit": "none", "torch": "2", "machine": "CPU", "threads": 1,
        "clips": ["one.mp4"], "training_samples": 2, "held_out_samples": 1, "parameters": 5_000_000, "tokens": 768,
        "batch": 2, "base": {"sha256": "0" * 64, "steps": 10, "rate": 1e-3, "held_out": {"5": 1.2, "10": 1.0},
                             "seconds": 1, "start": "random"},
    }  # fmt: skip
    return Results(CPU, facts, found)


def test_tables_come_from_the_results():
    text = markdown(invented(), "fidelity")
    assert (
        "| seed 0, 300 steps, lr 0.001, half teacher's velocity | 25.0% | 1.1000 | 0.9000 | 1.0000 | 0.9300 |" in text
    )
    assert "gap closed **70.0% ± 0.0%**" in text
    assert "dense-medium-sparse tall is closer to dense than the constant window, by 1.00 dB" in text
    assert "sparse-dense-medium tall cannot be told from the constant window" in text
    assert "**not flat**" in text
    assert tables.NOTHING not in text
    assert "Not run" not in text


def test_a_half_run_study_says_what_is_missing():
    text = markdown(invented(("rates",)), "fidelity")
    assert tables.NOTHING in text
    assert "cannot be judged" in text
    assert "- Not run:" in text


def test_a_missed_goal_is_said():
    rows = invented().rows(plan.core(CPU))
    assert "not met: 70% is closed" in tables.verdict(rows, 0.95)
    assert "is met" in tables.verdict(rows, 0.5)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is no JSON file"), ("[]", "is no results file"), ('{"conditions": {}, "results": {}}', "unknown size")],
)
def test_broken_results_are_one_sentence(content, words, tmp_path):
    path = tmp_path / "cpu.json"
    with pytest.raises(ConfigError, match="no results yet"):
        load_results(path)
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_results(path)


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    made = invented()
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"conditions": made.conditions, "results": made.results}))
    written = write_report(path, tmp_path / "out")
    text = written[0].read_text()
    assert len(written) == 7
    for picture in written[1:]:
        assert f"({picture.name})" in text


@pytest.mark.skipif(not COMMITTED.is_file(), reason="no results of the study are committed")
def test_the_committed_report_is_what_the_results_say():
    report = PACK / "docs" / "studies" / "fidelity.md"
    text = markdown(load_results(COMMITTED), "fidelity")
    assert report.read_text(encoding="utf-8") == text, "run `python -m training.studies report` again"
    for name in [part.split(")")[0] for part in text.split("](")[1:]]:
        assert (report.parent / name).is_file(), f"{name} is not committed"


def test_an_arm_that_saw_other_noise_levels_is_named():
    made = invented()
    arm = plan.core(CPU)[0].arm
    assert "comparisons below is paired" in markdown(made, "fidelity")
    made.results[plan.Train(arm).key]["sigmas"] = "others"
    assert f"**Not paired**, so not comparable: {arm.key} drew" in markdown(made, "fidelity")
