"""``python -m training.search``: the table it writes, going on after a stop, the model with a header, bad arguments."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from fpsattention.kernels.checkpoint import read_header, read_metadata
from fpsattention.kernels.head_table import read_head_table
from fpsattention.kernels.patterns import Full
from fpsattention.training.search import passes, work
from fpsattention.training.search.cli import ASSETS, main
from fpsattention.training.search.state import StateFile

# 3 latent frames of 4 x 6 tokens.
SMALL = [
    "--size",
    "96x64x9",
    "--steps",
    "3",
    "--seeds",
    "0",
    "--evidence",
    "1",
    "--candidates",
    "paper",
    "--stripes",
    "0.2",
]


def run(out, *more, code=0):
    assert main([*SMALL, *more, "--out", str(out)]) == code


def test_a_table_its_report_and_a_model_that_carries_it(tmp_path, capsys):
    out, new = tmp_path / "heads.json", tmp_path / "with-heads.safetensors"
    run(
        out,
        "--budget",
        "40%",
        "--dense-steps",
        "1",
        "--dense-layers",
        "0",
        "--into",
        str(new),
        "--schedule",
        "0 fp8 x2 heads",
    )
    said = capsys.readouterr().out
    table = read_head_table(out)
    assert (table.layers, table.heads, len(table.bands), table.grid.shape) == (4, 2, 3, (3, 4, 6))
    assert table.schedule.phases[0].attention == "dense" and table.schedule.phases[1].granularity == "x2"
    for band in table.bands:
        assert all(isinstance(table.patterns[i], Full) for i in np.unique(band.chosen[:, 0]))
    # The budget is of what is searched: two steps, three layers.
    searched = [table.head_densities(work.choose_tiling(table.grid, 8, table.tile), band)[:, 1:] for band in (1, 2)]
    assert 0.2 < np.mean(searched) <= 0.4 + 1e-9
    assert table.made["evidence"]["clips"] == 1 and table.made["passes"] == 2 and table.made["rule"] == "budget"
    assert f"head table: {out}" in said and "mean density" in said
    report = tmp_path / "heads-report"
    assert {p.suffix for p in report.iterdir()} == {".png", ".npz"} and (report / "density.png").stat().st_size > 5000
    with np.load(report / "errors.npz") as file:
        assert file["errors"].shape == (3, 1, 4, 2, len(file["candidates"])) and np.isnan(file["errors"][0]).all()
    header = read_header(new)
    assert header.heads == table and header.schedule == table.schedule
    base = ASSETS / "wan2.1-tiny-t2v.safetensors"
    assert read_metadata(new)[1] == read_metadata(base)[1]
    from safetensors.torch import load_file

    ours, theirs = load_file(new), load_file(base)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not StateFile(out, "").path.exists() and read_header(base) != header


def test_an_interrupted_search_goes_on_and_finds_the_same(tmp_path, monkeypatch, capsys):
    whole, parted = tmp_path / "whole.json", tmp_path / "parted.json"
    more = ("--budget", "0.4", "--seeds", "0-1", "--cfg", "3", "--branches", "separate")
    run(whole, *more)
    monkeypatch.setattr(passes, "SAVE_SECONDS", -1.0)
    real, done = passes.run_step, []

    def stop(*args, **kwargs):
        if len(done) in (2, 5, 8):
            done.append("stopped")
            raise KeyboardInterrupt
        done.append(args[4])
        return real(*args, **kwargs)

    monkeypatch.setattr(passes, "run_step", stop)
    for _ in range(3):
        run(parted, *more, code=130)
        assert StateFile(parted, "").path.is_file() and not parted.exists()
    run(parted, *more)
    assert [step for step in done if step != "stopped"] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    first, second = read_head_table(whole), read_head_table(parted)
    assert first.branches == 2 and first.digest == second.digest
    assert first.made["mean_error"] == pytest.approx(second.made["mean_error"], rel=1e-6)
    assert "goes on with pass" in capsys.readouterr().err
    # Other settings do not go on from it.
    done.clear()
    run(tmp_path / "third.json", *more, code=130)
    # It is said before anything is sampled.
    monkeypatch.setattr(work, "gather", lambda *args, **kwargs: pytest.fail("sampled"))
    run(tmp_path / "third.json", "--budget", "0.5", code=2)
    assert "is of a search with other settings" in capsys.readouterr().err
    monkeypatch.setattr(passes, "run_step", real)
    run(tmp_path / "third.json", "--budget", "0.5", "--evidence", "0", "--restart")


def test_ctrl_c_finishes_the_step_and_saves(tmp_path, monkeypatch, capsys):
    out, done = tmp_path / "heads.json", []
    real = passes.run_step

    def press(*args, **kwargs):
        done.append(args[4])
        if len(done) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(passes, "run_step", press)
    run(out, code=75)
    said = capsys.readouterr().err
    assert "stopped and saved" in said and "Traceback" not in said and done == [0, 1] and not out.exists()
    run(out)
    assert done == [0, 1, 2] and out.exists() and "goes on with pass 1, batch 1, step 3" in capsys.readouterr().err


def test_what_is_said_of_a_table(tmp_path, capsys):
    """The density of what was searched beside that of all, and why every head stayed full."""
    out = tmp_path / "heads.json"
    run(out, "--budget", "40%", "--dense-steps", "1", "--candidates", "window all 30% 30%; skip")
    said = capsys.readouterr()
    assert "of what was searched, without dense steps and layers" in said.out and "exact density\n" in said.err
    assert "density of every head" in said.out
    run(out, "--epsilon", "0", "--lambda", "0.01")
    assert "every head stays full" in capsys.readouterr().out


def test_the_papers_rule_by_name(tmp_path):
    run(
        tmp_path / "heads.json",
        "--rule",
        "paper",
        "--bands",
        "phases",
        "--schedule",
        "0.5 bf16 - heads; 0 dense",
        "--evidence",
        "0",
    )
    made = read_head_table(tmp_path / "heads.json").made
    assert (made["lambda"], made["epsilon"], made["error"], made["cost"]) == (0.5, 1.0, "mse", "density")
    assert "evidence" not in made and not any(word.startswith("stripe") for word in made["candidates"])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--schedule", "0 fp8 x1 all all all"], "never says 'heads'"),
        (["--schedule", "0 fp8 x1 svg 0.3; 0 dense"], "line 2"),
        (["--schedule", "0.5 fp8 x1 svg 0.3; 0 fp8 x1 heads"], "says 'svg 0.3'"),
        (["--schedule", "mild"], "a preset never says 'heads'"),
        (["--budget", "0"], "--budget is '0'"),
        (["--budget", "40s"], "is a time, which needs --cost measured"),
        (["--budget", "0.3", "--lambda", "1"], "--budget finds lambda itself"),
        (["--candidates", "jump 3"], "'jump' is no pattern"),
        (["--candidates", "papr"], "sets are default, paper"),
        (["--dense-layers", "9"], "no layer or range of 0 to 3"),
        (["--dense-layers", "0-3"], "leaves no layer to search"),
        (["--dense-steps", "3"], "leaves none of 3 steps"),
        (["--lambda", "-1"], "lambda is -1"),
        (["--epsilon", "nan"], "epsilon is nan"),
        (["--steps", "0"], "--steps is 0"),
        (["--together", "0"], "--together is 0"),
        (["--slots", "1"], "--slots is 1"),
        (["--stripes", "2"], "--stripes is 2"),
        (["--size", "100x64x9"], "not a multiple of 16"),
        (["--model", "nowhere.safetensors"], "there is no such file"),
        (["--backend", "triton-fp8"], "cannot run here"),
        (["--out", "."], "is a folder"),
        (["--into", "."], "--into .: is a folder"),
        (["--into", "/dev/null/new.safetensors"], "--into /dev/null/new.safetensors: /dev/null is a file"),
        (["--into", str(ASSETS / "wan2.1-tiny-t2v.safetensors")], "is the file that is read"),
        (["--schedule", "nofile.txt"], "there is no file 'nofile.txt'"),
    ],
)
def test_bad_arguments_are_one_sentence_before_anything_is_sampled(tmp_path, monkeypatch, capsys, more, sentence):
    monkeypatch.setattr(work, "run_passes", lambda *args, **kwargs: pytest.fail("sampled"))
    monkeypatch.setattr(work, "gather", lambda *args, **kwargs: pytest.fail("sampled"))
    assert main([*SMALL, "--out", str(tmp_path / "heads.json"), *more]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: ") and said.count("\n") == 1, said
    assert not list(tmp_path.iterdir())


def test_weights_are_what_a_layers_error_does_to_the_output(tmp_path, monkeypatch):
    """Against the models' outputs themselves: the relative change of the velocity with one layer sparse."""
    seen = {}
    real = work.measure_weights

    def measure(model, search, sampler, clip, tick):
        seen.update(model=model, search=search, sampler=sampler, clip=clip)
        return real(model, search, sampler, clip, tick)

    monkeypatch.setattr(work, "measure_weights", measure)
    run(tmp_path / "heads.json", "--budget", "0.4", "--evidence", "0", "--passes", "1")
    search, sampler, model = seen["search"], seen["sampler"], seen["model"]
    assert search.weights.shape == (3, 4) and (search.weights > 0).all() and search.request.error == "output"
    # By hand, at the first step: a table that is sparse in one layer alone.
    from fpsattention.kernels.head_table import Band, HeadTable
    from fpsattention.kernels.patterns import Full
    from fpsattention.training.attention import attention_state
    from fpsattention.training.search.trajectory import noise
    from fpsattention.training.sparse import DENSE, SparseAttention
    from fpsattention.training.step import model_inputs

    index = int(np.argmin(np.abs(search.densities - 0.3)))
    x, sigma = noise(sampler, [seen["clip"]]), sampler.sigmas[0]

    def velocity(attention):
        level = torch.full((1,), sigma)
        with torch.no_grad(), attention_state(model).step(attention, sigma, sampler.shape):
            return model(*model_inputs(x, level, [seen["clip"].text]), return_dict=False)[0].double()

    dense, changes = velocity(DENSE), []
    for layer in range(4):
        chosen = np.zeros((1, 4, 2), dtype=np.uint8)
        chosen[0, layer] = 1
        table = HeadTable(
            (Full(), search.candidates[index]),
            (Band(0.0, chosen),),
            search.grid,
            search.tiling.tile,
            8,
            search.request.schedule,
        )
        change = velocity(SparseAttention(table.schedule, 8, search.tiling.tile, table=table)) - dense
        changes.append(float(change.square().sum() / dense.square().sum()))
    # The first band's middle lies below the first step: weights there are between those of steps 0 and 1.
    ratio = np.array(changes) / search.weights[0]
    normalized = search.sums[0, 0, :, :, index].sum(-1) / search.counts[0, 0]
    assert (ratio / normalized > 0.3).all() and (ratio / normalized < 3).all()


def test_measured_costs_and_a_budget_in_seconds(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FPSATTENTION_CALIBRATION", str(tmp_path / "calibration.json"))
    out, more = tmp_path / "heads.json", ("--cost", "measured", "--evidence", "0", "--steps", "2")
    run(out, *more, "--budget", "100%")
    table = read_head_table(out)
    assert table.made["cost"] == "measured" and "measured time" in table.made["costs_from"]
    assert (tmp_path / "calibration.json").is_file() and table.made["costs"][0] == 1.0
    capsys.readouterr()
    # So many seconds that nothing need be left out, then so few that nothing fits.
    run(out, *more, "--budget", "1000s")
    assert read_head_table(out).made["budget"] == 1.0
    run(out, *more, "--budget", "0.000001s", code=2)
    assert "--budget 0.000001s" in capsys.readouterr().err


def test_a_damaged_state_is_said(tmp_path, capsys):
    state = StateFile(tmp_path / "heads.json", "")
    state.path.write_bytes(b"PK nothing")
    run(tmp_path / "heads.json", code=2)
    assert "is damaged; remove it, or say --restart" in capsys.readouterr().err


def test_the_models_own_choices_stay_its_own(tmp_path, capsys):
    """A damaged table in a header is said before a search is begun."""
    out, new = tmp_path / "heads.json", tmp_path / "new.safetensors"
    run(out, "--evidence", "0", "--into", str(new))
    table = json.loads(out.read_text())
    assert table["model"] == "wan2.1-tiny-t2v.safetensors" and table["made"]["candidates"][0] == "full"
    run(out, "--model", str(new), "--size", "96x64x9", "--evidence", "0", "--into", str(new), code=2)
    assert "is the file that is read" in capsys.readouterr().err
