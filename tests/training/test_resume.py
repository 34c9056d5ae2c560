"""The states of a run: what they hold, written beside training, refused by other runs, read by other processes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fpsattention.training import resume, state
from fpsattention.training.config import ConfigError
from fpsattention.training.distributed import World
from fpsattention.training.ema import Ema
from fpsattention.training.files import fingerprint
from fpsattention.training.optimizer import make_optimizer
from fpsattention.training.plateau import Plateau
from fpsattention.training.resume import Saver, state_pieces
from fpsattention.training.state import ALONE, NotWrittenError, SnapshotError, load_tensors
from torch import nn

PARTS = Path(__file__).with_name("state_parts.py")


def new_run(config, *, frozen: bool = False, wide: int = 256):
    """Return what a saver sees of a run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(wide, 64), nn.Linear(64, 3))
    model[0].requires_grad_(not frozen)
    run = SimpleNamespace(model=model, optimizer=make_optimizer(config.optim, model), ema=Ema(model, 0.9))
    return SimpleNamespace(**vars(run), plateau=Plateau(config.optim), step=0, skipped=0, skipped_in_a_row=0)


def train(run, steps: int) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(run.step)
        run.model(torch.randn(4, run.model[0].in_features, generator=generator)).square().mean().backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.ema.update()
        run.step += 1


def copies(run) -> dict[str, torch.Tensor]:
    return {name: piece.local.clone() for name, piece in state_pieces(run, ALONE).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def told(caplog) -> list[str]:
    found = [record for record in caplog.records if record.name.startswith("fpsattention")]
    return [record.getMessage() for record in found if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_everything_comes_back(make_config, name):
    config = make_config(optim__name=name)
    run = new_run(config)
    saver = Saver(config, run, World())
    saver.restore("none")
    train(run, 3)
    run.plateau.factor, run.skipped, run.skipped_in_a_row = 0.5, 4, 2
    saver.save()
    saver.finish()
    kept = copies(run)
    train(run, 2)
    other = new_run(config)
    torch.rand(7)
    again = Saver(config, other, World())
    again.restore("auto")
    assert (other.step, other.plateau.factor, other.skipped, other.skipped_in_a_row) == (3, 0.5, 4, 2)
    assert again.saved_step == 3 and equal(copies(other), kept)
    train(other, 2)
    assert equal(copies(other), copies(run))


@pytest.mark.parametrize(("now", "warns"), [("these", False), ("others", True), (None, False)])
def test_samples_that_changed_are_told(make_config, caplog, now, warns):
    config, world = make_config(), World()
    run = new_run(config)
    train(run, 1)
    saver = Saver(config, run, world, "these")
    saver.save()
    saver.finish()
    Saver(config, new_run(config), world, now).restore("auto")
    assert [text for text in told(caplog) if "samples are not those" in text] == told(caplog)
    assert bool(told(caplog)) == warns


def test_a_state_written_beside_training_is_that_of_its_step(make_config, monkeypatch, tmp_path):
    started, go_on = threading.Event(), threading.Event()
    real = state.write_pieces

    def slow(*arguments):
        started.set()
        assert go_on.wait(60)
        real(*arguments)

    states = []
    for background in (False, True):
        config = make_config(checkpoint__dir=str(tmp_path / f"{background}"), checkpoint__background=background)
        run = new_run(config)
        saver = Saver(config, run, World())
        train(run, 2)
        if background:
            monkeypatch.setattr(state, "write_pieces", slow)
        saver.save()
        if background:
            assert started.wait(60) and saver.saved_step is None
            train(run, 3)  # while the state of step 2 is not yet on disk
            go_on.set()
            saver._settle()
        assert saver.saved_step == 2
        path = tmp_path / f"{background}" / "step-000002"
        states.append({f"{group}/{name}": tensor for group in ("model", "ema", "optimizer")
                       for name, tensor in load_tensors(path, group).items()})  # fmt: skip
    assert equal(*states)


def test_the_next_save_waits_for_the_one_before_and_the_same_step_is_written_once(make_config, monkeypatch):
    config = make_config()
    run = new_run(config)
    saver = Saver(config, run, World())
    written, real = [], resume.save_step
    monkeypatch.setattr(resume, "save_step", lambda *a: (written.append(a[1]), real(*a))[1])
    for _ in range(3):
        train(run, 1)
        saver.save()
        saver.save()
    saver.finish()
    assert written == [1, 2, 3] and saver.saved_step == 3


@pytest.mark.parametrize("background", [False, True])
def test_what_cannot_be_written_is_one_warning_and_tried_again(make_config, monkeypatch, caplog, background):
    config = make_config(checkpoint__background=background)
    run = new_run(config)
    saver = Saver(config, run, World())
    train(run, 1)
    saver.save()
    real, calls = resume.save_step, []

    def fail_once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise NotWrittenError("the disk is full, a state in x needs 2 MiB and 1 MiB are free")
        return real(*arguments)

    saver.finish()
    monkeypatch.setattr(resume, "save_step", fail_once)
    train(run, 1)
    with caplog.at_level(logging.WARNING):
        saver.save()
        train(run, 1)
        saver.save()
        saver.finish()
    (said,) = told(caplog)
    assert said == (
        "state of step 2 not written: the disk is full, a state in x needs 2 MiB and 1 MiB are free; the last good one "
        "stays, training goes on and tries again when the next is due"
    )
    assert saver.saved_step == 3


def test_a_run_that_ends_without_its_state_on_disk_says_so(make_config, monkeypatch, caplog):
    config = make_config()
    run = new_run(config)
    saver = Saver(config, run, World())
    train(run, 1)
    monkeypatch.setattr(resume, "save_step", lambda *_: (_ for _ in ()).throw(NotWrittenError("x")))
    saver.save()
    saver.finish()
    assert told(caplog)[-1] == "the state of step 1 is not on disk; there is no state on disk"


def test_a_fault_of_the_writer_is_not_hidden(make_config, monkeypatch):
    config = make_config()
    run = new_run(config)
    saver = Saver(config, run, World())
    monkeypatch.setattr(resume, "save_step", lambda *_: (_ for _ in ()).throw(TypeError("odd")))
    train(run, 1)
    saver.save()
    with pytest.raises(TypeError, match="odd"):
        saver.save()


@pytest.mark.parametrize("where", ["model", "ema", "optimizer"])
def test_a_state_that_is_not_finite_is_never_written(make_config, caplog, where):
    config = make_config()
    run = new_run(config)
    saver = Saver(config, run, World())
    train(run, 1)
    saver.save()
    train(run, 1)
    with torch.no_grad():
        tensors = {
            "model": run.model[1].weight,
            "ema": run.ema.tensors["1.bias"],
            "optimizer": run.optimizer.state[run.model[1].weight]["exp_avg"],
        }
        tensors[where].view(-1)[1] = float("inf" if where == "ema" else "nan")
    saver.save()
    assert f"state of step 2 not written: {where}/" in told(caplog)[0] and "is not finite" in told(caplog)[0]
    assert saver.saved_step == 1


def test_only_what_is_trained_is_saved(make_config):
    config = make_config()
    run = new_run(config, frozen=True)
    saver = Saver(config, run, World())
    train(run, 2)
    saver.save()
    saver.finish()
    assert set(load_tensors(Path(config.checkpoint.dir) / "step-000002", "model")) == {"1.weight", "1.bias"}
    other = new_run(config, frozen=True)
    Saver(config, other, World()).restore("auto")
    train(run, 1)
    train(other, 1)
    assert equal(copies(run), copies(other))


@pytest.fixture
def saved(make_config):
    """Give a run's state of step 1 in the default directory."""
    config = make_config()
    run = new_run(config)
    saver = Saver(config, run, World())
    train(run, 1)
    saver.save()
    saver.finish()
    return Path(config.checkpoint.dir) / "step-000001"


def test_all_differences_of_the_configuration_are_named_at_once(make_config, saved, caplog):
    config = make_config(seed=1, attention__schedule="dense", optim__batch=1, optim__lr=1e-4, checkpoint__keep=5)
    with pytest.raises(ConfigError) as caught:
        Saver(config, new_run(config), World()).restore("auto")
    said = str(caught.value)
    assert "step-000001 was written by another run: attention.schedule is 'dense' (was '0.90 fp8" in said
    assert "optim.batch is 1 (was 2); seed is 1 (was 0); set this back, or start a new run in another" in said
    assert told(caplog) == ["optim.lr was 0.001 when step-000001 was written and is 0.0001 from here on"]
    # The same number of samples in a step is the same run, however they are dealt.
    same = make_config(optim__batch=1, optim__global_batch=2)
    Saver(same, new_run(same), World()).restore("auto")


def test_another_model_is_one_sentence(make_config, saved):
    config = make_config()
    with pytest.raises(SnapshotError) as caught:
        Saver(config, new_run(config, wide=128), World()).restore(str(saved))
    assert "is the state of another model: model/0.weight is 64 x 256 there and 64 x 128 here (and 1 more)" in str(
        caught.value
    )
    with pytest.raises(SnapshotError, match=r"its model/0.weight has no place here \(and 3 more\)"):
        Saver(config, new_run(config, frozen=True), World()).restore(str(saved))


def test_weights_to_start_from_are_known_by_what_they_hold(make_config, tmp_path):
    for name, value in (("a", 1), ("moved", 1), ("other", 2)):
        (tmp_path / f"{name}.safetensors").write_bytes(bytes([value]) * 3_000_000)

    def config_for(name):
        return make_config(model={"path": str(tmp_path / f"{name}.safetensors")})

    run = new_run(config_for("a"))
    saver = Saver(config_for("a"), run, World())
    train(run, 1)
    saver.save()
    saver.finish()
    Saver(config_for("moved"), new_run(config_for("moved")), World()).restore("auto")
    with pytest.raises(ConfigError, match=r"other\.safetensors holds other weights than the run started from"):
        Saver(config_for("other"), new_run(config_for("other")), World()).restore("auto")


def test_a_fingerprint_covers_names_sizes_and_samples(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(bytes(5_000_000))
    first = fingerprint(file)
    file.write_bytes(bytes(4_999_999) + b"x")
    assert fingerprint(file) != first
    folder = fingerprint(tmp_path)
    (tmp_path / "y.safetensors").write_bytes(b"y")
    assert fingerprint(tmp_path) != folder


def test_starting_where_states_are_needs_a_word(make_config, saved):
    config = make_config()
    with pytest.raises(ConfigError, match="already holds 1 checkpoints up to step 1; go on with --resume auto"):
        Saver(config, new_run(config), World()).restore("none")
    with pytest.raises(SnapshotError, match="there is no such checkpoint directory"):
        Saver(config, new_run(config), World()).restore(str(saved) + "x")


def test_who_resumes_a_run_that_gave_up_may_try_again(make_config, tmp_path):
    config = make_config(optim__nonfinite_limit=3)
    run = new_run(config)
    saver = Saver(config, run, World())
    train(run, 1)
    run.skipped = run.skipped_in_a_row = 3
    saver.save()
    saver.finish()
    other = new_run(config)
    Saver(config, other, World()).restore("auto")
    assert (other.skipped, other.skipped_in_a_row) == (3, 0)


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_from_a_state(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PARTS), str(tmp_path), "adamw-8bit"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {"1 to 2", "2 to 1", "2 to 4", "4 to 2"}
    for case, found in report.items():
        assert found["same names"], case
        # An 8-bit moment that was full precision on those processes is rounded once; everything else is the same bits.
        assert all("exp_avg" in name and change < 0.01 for name, change in found["changed"].items()), case
        assert len(found["changed"]) <= 2, case
        for one in found["results"]:
            assert one["step"] == 2 and one["factor"] == 0.25
            assert one["losses"] == pytest.approx(found["losses before"], rel=1e-5), case
    assert all(max(held) < 0.6 * sum(held) for held in (report["2 to 1"]["held"], report["4 to 2"]["held"]))
