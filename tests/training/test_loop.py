"""Training: pairing, groups by phase, resume to the bit, kill -9, signals, bad steps, averages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fpsattention.training import loop, step
from fpsattention.training.assemble import GRAPHS, assemble
from fpsattention.training.config import ConfigError
from fpsattention.training.distributed import World
from fpsattention.training.flow import draw
from fpsattention.training.journal import read_records
from fpsattention.training.loop import NonFiniteError, fit
from fpsattention.training.model import starting_model
from fpsattention.training.passes import Pass, deal
from fpsattention.training.sparse import DENSE
from fpsattention.training.step import forward_backward, plan_step
from fpsattention.training.stopping import StopFlag
from fpsattention.training.validation import validate

CHILD = Path(__file__).with_name("child.py")


def test_two_runs_that_differ_in_attention_see_the_same_data(make_config, samples, tmp_path):
    joint = fit(make_config(checkpoint__dir=str(tmp_path / "a")), samples, samples[:2], progress=None)
    dense = fit(
        make_config(checkpoint__dir=str(tmp_path / "b"), attention__schedule="dense"),
        samples,
        samples[:2],
        progress=None,
    )
    assert [r["sigma"] for r in joint.records] == [r["sigma"] for r in dense.records]
    assert {p for r in joint.records for p in r["phase"]} == {0, 1, 2}
    assert {p for r in dense.records for p in r["phase"]} == {0}
    # The last layer starts at zero, so the first loss depends on nothing but data, noise and sigma.
    assert joint.records[0]["loss"] == dense.records[0]["loss"]
    assert joint.records[-1]["loss"] != dense.records[-1]["loss"]
    assert joint.validation.loss == joint.records[-1]["validation"] != dense.validation.loss


def test_gradient_of_a_batch_is_the_mean_over_its_samples(make_config, samples):
    config = make_config(attention__schedule="0.8 fp8 x1 all 2 2\n0 dense", optim__global_batch=5)
    model = starting_model(config.model, 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    run = assemble(config, World(), torch.device("cpu"), model)
    places, _ = plan_step(run, 0, samples)
    assert len({place.phase for place in places}) == 2

    def gradient(passes):
        model.zero_grad(set_to_none=True)
        for one in passes:
            draws = [draw(samples[p.index], config.flow.resolved(), 0, p.epoch, p.index) for p in one.places]
            assert [d.sigma for d in draws] == [p.sigma for p in one.places]  # foretold without reading
            forward_backward(run, draws, len(places), counts=one.counts)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together = gradient(deal(places, 5, 1)[0])
    alone = gradient([Pass((place,)) for place in places])
    shared = [gradient(passes) for passes in deal(places, 2, 2)]  # one process more than the passes need: a repeat
    for other in (alone, shared[0] + shared[1]):
        assert (together - other).norm() <= 1e-5 * together.norm()


@pytest.mark.parametrize("ema", [None, {"decay": 0.8}])
def test_resume_after_a_stop_is_bit_equal(make_config, samples, tmp_path, weights_hash, ema):
    changes = {"ema": ema} if ema else {}
    whole = fit(make_config(checkpoint__dir=str(tmp_path / "a"), **changes), samples, samples[:1], progress=None)
    config = make_config(checkpoint__dir=str(tmp_path / "b"), **changes)
    stop = StopFlag()
    part = fit(
        config, samples, samples[:1], progress=None, stop=stop, on_step=lambda n, _: stop.request() if n == 3 else None
    )
    assert part.stopped and part.step == 3
    torch.rand(100)  # whatever else happens to the global generator
    rest = fit(config, samples, samples[:1], progress=None, resume="auto")
    assert not rest.stopped and rest.step == 6
    assert weights_hash(rest.model) == weights_hash(whole.model)
    assert [r["loss"] for r in rest.records] == [r["loss"] for r in whole.records]
    log = [json.loads(line) for line in (tmp_path / "out" / "loss.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log] == list(range(6))
    assert rest.validation.loss == whole.validation.loss


def test_the_final_validation_is_in_the_log(make_config, samples, tmp_path):
    config = make_config()
    result = fit(config, samples, samples[:1], progress=None)
    log = read_records(tmp_path / "out" / "loss.jsonl")
    assert log == result.records and log[-1]["validation"] == result.validation.loss
    assert [path.name for path in (tmp_path / "out").glob("loss.jsonl*")] == ["loss.jsonl"]
    # A run that has nothing left to do measures again, and in a new folder it has no step to write it to.
    again = fit(config, samples, samples[:1], progress=None, resume="auto")
    assert again.records == log
    elsewhere = fit(make_config(output__dir=str(tmp_path / "new")), samples, samples[:1], progress=None, resume="auto")
    assert elsewhere.step == 6 and elsewhere.records == [] and elsewhere.validation.loss == result.validation.loss


def test_a_plateau_needs_held_out_samples(make_config, samples):
    config = make_config(optim__decay="plateau", validation__every=2)
    with pytest.raises(ConfigError, match=r"no sample is held out .* set data.holdout above 0, or optim.decay to"):
        fit(config, samples, progress=None)


def test_a_report_that_cannot_be_drawn_does_not_cost_the_weights(make_config, samples, monkeypatch, caplog, tmp_path):
    def fail(_folder):
        raise ValueError("no font")

    monkeypatch.setattr(loop, "write_report", fail)
    result = fit(make_config(optim__steps=1, optim__warmup=0), samples, progress=None)
    assert result.step == 1 and result.saved == 1
    assert f"the report is not written: no font; python -m training.report {tmp_path / 'out'} tries" in caplog.text


def test_compiled_blocks_may_have_many_graphs(make_config):
    with torch._dynamo.config.patch(recompile_limit=8):
        assemble(make_config(compile=True), World(), torch.device("cpu"))  # compiles when it first runs
        assert torch._dynamo.config.recompile_limit == GRAPHS


def test_resume_refuses_another_run(make_config, samples, tmp_path):
    fit(make_config(), samples, progress=None)
    with pytest.raises(ConfigError, match="already holds 2 checkpoints up to step 6; go on with --resume auto"):
        fit(make_config(), samples, progress=None)
    for change, words in (
        ({"seed": 1}, "seed is 1"),
        ({"optim__batch": 1}, "optim.batch is 1"),
        ({"attention__schedule": "dense"}, "attention.schedule is 'dense'"),
    ):
        with pytest.raises(ConfigError, match=words):
            fit(make_config(**change), samples, progress=None, resume="auto")
    longer = fit(make_config(optim__steps=7), samples, progress=None, resume="auto")
    assert longer.step == 7


def start_child(table: Path, resume: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(CHILD), str(table), resume], stdout=subprocess.PIPE, text=True)


def test_sigterm_saves_and_exits_with_75(table, tmp_path):
    table["optim"]["steps"] = 5000
    table["checkpoint"]["every"] = 0
    file = tmp_path / "config.json"
    file.write_text(json.dumps(table))
    child = start_child(file, "none")
    for line in child.stdout:
        if line.strip() == "step 2":
            child.send_signal(signal.SIGTERM)
            break
    child.communicate()
    assert child.returncode == 75
    assert next((tmp_path / "checkpoints").iterdir()).name >= "step-000002"


def test_a_bad_step_changes_nothing_and_repeated_ones_end_the_run(make_config, samples, weights_hash, monkeypatch):
    config = make_config(optim__nonfinite_limit=2)
    real = step.velocity_loss
    bad_steps: set[int] = set()
    calls = []

    def sometimes_nan(out, latent, noise):
        calls.append(1)
        return real(out, latent, noise) * (float("nan") if state["step"] in bad_steps else 1.0)

    state = {"step": 0}
    monkeypatch.setattr(step, "velocity_loss", sometimes_nan)
    hashes = []

    def remember(number, record):
        state["step"] = number
        hashes.append((record["loss"], record["norm"]))

    bad_steps |= {2, 4}
    result = fit(config, samples, progress=None, on_step=remember)
    assert result.step == 6 and result.skipped == 2
    assert [loss is None for loss, _ in hashes] == [False, False, True, False, True, False]
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    state["step"] = 0
    bad_steps |= {3}
    with pytest.raises(NonFiniteError, match=r"not finite 2 steps in a row, last at step 3 \(samples \["):
        fit(make_config(optim__nonfinite_limit=2, checkpoint__dir=config.checkpoint.dir + "2"), samples,
            progress=None, on_step=remember)  # fmt: skip


def test_a_run_that_ends_with_infinite_weights_hands_nothing_on(make_config, samples):
    config = make_config(optim__lr=1.0, optim__weight_decay=1e300, optim__steps=2, optim__warmup=0)
    with pytest.raises(NonFiniteError, match=r"is not finite after step 2, so nothing is exported; lower optim.lr"):
        fit(config, samples, samples[:1], progress=None)
    assert not list(Path(config.checkpoint.dir).glob("step-*"))


def test_average_is_what_is_validated_and_returned(make_config, samples):
    raw = fit(make_config(), samples, samples[:2], progress=None)
    config = make_config(ema={"decay": 0.5}, checkpoint__dir=make_config().checkpoint.dir + "2")
    mean = fit(config, samples, samples[:2], progress=None)
    assert [r["loss"] for r in raw.records] == [r["loss"] for r in mean.records]
    assert mean.validation.loss != raw.validation.loss
    section = config.validation
    again = validate(
        mean.model, samples[:2], sigmas=section.sigmas, attention=config.attention.resolved(), seed=section.seed
    )
    assert again.loss == mean.validation.loss


def test_validation_does_not_depend_on_the_batch(make_config, samples):
    model = starting_model(make_config().model, 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    single, together = (validate(model, samples, sigmas=(0.9, 0.5), attention=DENSE, batch=batch) for batch in (1, 3))
    assert single.loss == pytest.approx(together.loss, rel=1e-6)
    assert set(single.per_sigma) == {0.9, 0.5} and single.latents == 5
    with pytest.raises(ValueError, match="no samples"):
        validate(model, [], sigmas=(0.5,))


def test_bf16_compute_keeps_weights_and_loss_in_float32(make_config, samples):
    result = fit(make_config(dtype="bf16", activation_checkpointing="full"), samples, samples[:1], progress=None)
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    exact = fit(make_config(checkpoint__dir=make_config().checkpoint.dir + "2"), samples, samples[:1], progress=None)
    assert result.validation.loss == pytest.approx(exact.validation.loss, rel=0.02)
