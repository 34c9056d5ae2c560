"""Table, plots and the README's block, from a result that is made up here and lies nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fpsattention.kernels.bench import plots, readme
from fpsattention.kernels.bench.cells import attention_cells
from fpsattention.kernels.bench.cli import main
from fpsattention.kernels.bench.figures import compare, find
from fpsattention.kernels.bench.model import amdahl, conclude
from fpsattention.kernels.bench.model_report import sentence
from fpsattention.kernels.bench.model_shapes import PUBLISHED, model_cells
from fpsattention.kernels.bench.report import table
from fpsattention.kernels.bench.store import RESULTS, ResultError, newest

ROOT = Path(__file__).resolve().parents[2]
ROWS = (
    "attention, 720p, 81 frames, 40 heads, 25 % density",
    "attention, 720p, 81 frames, 40 heads, 15 % density",
    "attention, 720p, 81 frames, 40 heads, 10 % density",
    "attention, 720p, 81 frames, 40 heads, 5 % density",
    "FP8 alone (100 % density)",
    "forward and backward, same shape, 15 % density",
    "one whole denoising step, wan2.1-14b, 720p, 81 frames, 15 % density in every step, FP8 linear layers, compiled",
    "one whole denoising step, wan2.1-1.3b, 480p, 81 frames, 15 % density in every step, FP8 linear layers, compiled",
    "first call with an empty kernel cache",
    "share of quantization and everything else",
)


def entry(family, ms, density=1.0, **more):
    times = {"ms": ms, "ms_q1": ms * 0.99, "ms_q3": ms * 1.01, "ms_best": ms, "count": 20, "spread": 0.02}
    return {"family": family, "status": "ok", "density": density, "error": 1e-3, "tolerance": 1e-2, **times, **more}


def made_up(date: str = "2030-01-01T00:00:00+00:00") -> dict:
    """Return a result file of a card that does not exist, with round numbers that nobody measured."""
    cells = {}
    for cell in attention_cells()[:12]:
        density = cell.density / 100
        dense = 100.0 if cell.direction == "forward" else 350.0
        stages = {"share": {"quantize": 0.1, "attention": 0.8, "backward": 0.0, "other": 0.1}}
        stages["quantize_bytes_per_s"] = 3e12
        sparse = dense * density
        cells[cell.id] = {
            "status": "ok", "cell": json.loads(cell.to_json()), "tokens": 75600, "dense_flops": 1e14,
            "card_after": {"clocks.sm": "1755 MHz"}, "input_bytes": 10**9, "plan": {"build_ms": 20.0, "lookup_us": 3.0},
            "contestants": {
                "triton-fp8-128": entry("ours", sparse / 1.2 + 1, density, stages=stages, extra_bytes=8 * 10**8),
                "triton-bf16-128": entry("ours", sparse / 0.9 + 1, density, stages=stages),
                "flex-128": entry("sparse", sparse / 0.7 + 2, density),
                "cudnn": entry("dense", dense), "fa2": entry("dense", dense * 1.7),
                "sage": {"family": "dense8", "status": "not run", "reason": "not installed (sageattention)"},
                "vsa-64-triton": {
                    "family": "sparse", "status": "wrong", "reason": "differs from the reference (out 0.3)",
                },
            },
        }  # fmt: skip
    variants = {}
    steps = {
        "dense, bf16 linears": (1000.0, 800.0, "cudnn"),
        "dense, fp8 linears": (900.0, 800.0, "fa2"),
        "sparse, fp8 linears": (250.0, 120.0, "fa2"),
    }
    for name, (ms, attention, dense) in steps.items():
        parts = {"self-attention": attention, "cross-attention": 10.0, "linears": 90.0, "rest": ms - attention - 100}
        variants[name] = {"status": "ok", "ms": ms, "count": 4, "spread": 0.01, "dense": dense}
        variants[name]["parts_ms"] = {**parts, "total": ms}
    step = {"cell": {"kind": "model", "model": "wan2.1-14b", "label": "720p, uniform 15 %"}, "variants": variants}
    step |= {"mean_density": 0.15, "parameters": 14 * 10**9}
    conclude(step)
    cells[next(iter(PUBLISHED))] = step
    # Better, but not the one that is published.
    cells["another step"] = {**step, "variants": {n: {**v, "ms": v["ms"] / 9} for n, v in variants.items()}}
    cells["ceilings"] = {"status": "ok", "cell": {"kind": "ceilings"}, "copy": {"tb_per_s": 4.0}}
    first = {"triton-fp8-128": {"status": "ok", "first_s": 9.0, "second_s": 0.1}}
    cells["start-fwd"] = {"status": "ok", "cell": {"kind": "start"}, "contestants": first, "headline": "first call"}
    cells["crashed"] = {"status": "timeout", "cell": {"kind": "attention"}, "message": "took longer than 240 s"}
    header = {"card": "Made-up card", "commit": "0" * 12, "dirty": False, "date": date, "versions": {"torch": "9.9"}}
    return {"format": 1, "standin": False, "purpose": "benchmark", "header": header, "cells": cells}


def test_the_table_names_everything_and_every_reason():
    text = table(made_up())
    for part in ("Made-up card", "720p-81f-h40-b1-fwd-d15", "triton-fp8-128", "cudnn", "not installed (sageattention)"):
        assert part in text
    assert "vsa-64-triton: wrong (differs from the reference (out 0.3))" in text
    assert "timeout: took longer than 240 s" in text and "4.96x needs a mean density of" in text
    assert "dense BF16 attentions in this file: cudnn, fa2\n" in text
    assert "quantization moves 3000 GB/s, 75% of a copy's" in text and "card right after: clocks.sm 1755 MHz" in text
    assert "STAND-IN" not in text and "STAND-IN" in table({**made_up(), "standin": True})


def test_efficiency_is_speed_up_times_density():
    result = find(made_up(), density=25)
    row = compare("", result)
    assert row.ours == "triton-fp8-128" and row.dense == "cudnn"
    assert row.speedup == pytest.approx(100 / (25 / 1.2 + 1)) and row.efficiency == pytest.approx(row.speedup * 0.25)
    assert compare("", result, "vsa-64-triton") is None and compare("", {"contestants": {}}) is None


def test_amdahl():
    # 100 dense of which 80 attention; ours 28 of which 8 at 10 %: the rest is 20, so 5x is the limit.
    law = amdahl(100.0, 28.0, 8.0, 0.1, target=4.0)
    assert law["limit"] == pytest.approx(5.0)
    # 4x leaves 25 - 20 = 5 of attention: 5 / 8 of 10 %.
    assert law["density_for_target"] == pytest.approx(0.0625)
    assert amdahl(100.0, 28.0, 8.0, 0.1, target=6.0)["density_for_target"] is None
    assert "out of reach" in sentence(amdahl(100.0, 28.0, 8.0, 0.1, target=6.0))
    assert "at any density" in sentence(amdahl(100.0, 10.0, 8.0, 0.9, target=2.0))


def test_plots_are_written_beside_the_result(tmp_path):
    pytest.importorskip("matplotlib")
    written = plots.draw(made_up(), tmp_path / "made-up.json")
    assert sorted(path.name for path in written) == [
        "made-up-density.png", "made-up-density.svg", "made-up-stages.png", "made-up-stages.svg",
    ]  # fmt: skip
    assert all(path.stat().st_size > 5000 for path in written)
    empty = {**made_up(), "cells": {}}
    assert plots.draw(empty, tmp_path / "empty.json") == []


def test_without_a_result_there_is_no_table(tmp_path):
    text = readme.block(newest(tmp_path))
    assert text.startswith("No card has been measured yet") and "|" not in text


def test_what_a_result_lacks_is_said_row_by_row(tmp_path):
    text = readme.block((tmp_path / "empty.json", {**made_up(), "cells": {}}))
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS):
        assert row in line and line.endswith("| *not measured* |")


def test_the_newest_result_of_a_card_fills_the_block(tmp_path):
    def put(name, date, **more):
        (tmp_path / name).write_text(json.dumps({**made_up(date), **more}))

    put("old.json", "2029-01-01")
    put("new.json", "2030-06-01")
    put("standin.json", "2031-01-01", standin=True)
    put("smoke.json", "2031-01-01", purpose="smoke")
    put("dirty.json", "2031-01-01", header={**made_up("2031-01-01")["header"], "dirty": True})
    (tmp_path / "other.json").write_text('{"registers": 168}')
    found = newest(tmp_path)
    assert found[0].name == "new.json"
    assert newest(tmp_path, unpublished=True)[0].name == "standin.json"
    text = readme.block(found)
    assert "Made-up card" in text and "`kernels/results/new.json`" in text
    assert f"| {ROWS[0]} | 4.58x, E 1.15 (triton-fp8-128 at 25.0%, against cudnn) |" in text
    assert (
        "3.60x against dense with the same linear layers (fa2), 4.00x against dense with bf16 linear layers (cudnn); "
        "n=4, spread 1.0%" in text
    )
    assert "E is the time of the fastest of cudnn, fa2, the dense BF16 attentions in this result, over ours" in text
    assert "fwd 9.0 s" in text and "| 20.0% |" in text
    assert text.count("*not measured*") == 1  # the 1.3B step


def test_update_replaces_the_block_and_nothing_else(tmp_path):
    page = tmp_path / "PAGE.md"
    page.write_text(f"before\n{readme.BEGIN}\noutdated\n{readme.END}\nafter\n")
    readme.update(page, None)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "outdated" not in text and "No card" in text
    readme.update(page, None)
    assert page.read_text() == text
    readme.update(page, (tmp_path / "new.json", made_up()))
    assert "`kernels/results/new.json`" in page.read_text()
    page.write_text("no markers")
    with pytest.raises(ResultError, match="has no lines"):
        readme.update(page, None)


def test_the_readme_says_what_the_newest_committed_result_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    inside = text.split(readme.BEGIN)[1].split(readme.END)[0].strip()
    assert inside == readme.block(newest()).strip(), "run: python -m kernels.benchmark --report FILE --readme"


def test_no_committed_result_is_a_standin():
    for path in RESULTS.glob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8")).get("standin") is not True, path.name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"standin": True}, "is a stand-in's"),
        ({"purpose": "tune"}, "'tune'"),
        ({"header": {"commit": "0" * 12, "dirty": True}}, "no commit holds"),
    ],
)
def test_a_result_that_cannot_be_repeated_stays_out_of_the_readme(change, says, tmp_path, capsys):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**made_up(), **change}))
    before = (ROOT / "README.md").read_text(encoding="utf-8")
    assert main(["--report", str(path), "--readme"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert (ROOT / "README.md").read_text(encoding="utf-8") == before


def test_the_published_steps_are_what_the_suite_runs():
    (big,) = model_cells("wan2.1-14b", "720p", 81, "15%", "fp8", True, False)
    (small,) = model_cells("wan2.1-1.3b", "480p", 81, "15%", "fp8", True, False)
    assert [big.id, small.id] == list(PUBLISHED)


def test_fewer_than_three_samples_get_no_spread():
    step = made_up()["cells"][next(iter(PUBLISHED))]
    for variant in step["variants"].values():
        variant["count"] = 1
    assert readme.step_sentence(step).endswith("n=1")
    del step["variants"]["dense, fp8 linears"]
    assert readme.step_sentence(step) is None


def test_the_best_of_ours_is_the_one_with_the_highest_efficiency():
    entries = {"a": entry("ours", 10.0, 0.10), "b": entry("ours", 11.0, 0.14), "cudnn": entry("dense", 100.0)}
    assert compare("", {"contestants": entries}).ours == "b"
