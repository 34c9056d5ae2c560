"""Previews: what is sampled and written, how processes share it, and that no failure of theirs ends a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fpsattention.training.data.video import read_clip
from fpsattention.training.distributed import World
from fpsattention.training.model import starting_model
from fpsattention.training.vae import load_vae
from fpsattention.training.watch.preview import GAP, Job, Previewer

VAE = Path(__file__).parents[2] / "training" / "assets" / "wan2.1-tiny-vae.safetensors"
SECTION = {"every": 2, "steps": 2, "seeds": [1, 2], "cfg": 1.0}


@pytest.fixture
def model(make_config):
    model = starting_model(make_config().model, 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.05)
    return model


def tiny_vae():
    return load_vae(VAE)


def test_previews_lie_beside_each_other_and_change_nothing(make_config, samples, model, weights_hash, tmp_path):
    config = make_config(preview={**SECTION, "captions": ["a fox", ""], "seeds": [1]})
    previewer = Previewer(config, samples[:1], None, tiny_vae)
    assert [previewer.due(step) for step in (0, 1, 2, 3, 6)] == [False, False, True, False, True]
    before, state = weights_hash(model), torch.get_rng_state()
    model.train()
    written = previewer.render(model, 2)
    assert weights_hash(model) == before and torch.equal(torch.get_rng_state(), state) and model.training
    folder = tmp_path / "out" / "previews"
    names = [f"step-000002_{caption}_seed1.mp4" for caption in (0, 1)] + ["step-000002.png"]
    assert [path.name for path in written] == names
    assert {path.name for path in folder.iterdir()} == {*names, "step-000002.json"}
    assert read_clip(folder / names[0]).frames[0].shape == (9, 64, 128 + GAP, 3)
    about = json.loads((folder / "step-000002.json").read_text())
    assert about["said"].count(" dB") == 2 and 0 < about["density"] <= 1
    # Not the same bytes: sums depend on where memory lies, and FP8 makes a difference of the last bit visible.
    first, again = (read_clip(path).frames[0].astype(int) for path in (written[0], previewer.render(model, 4)[0]))
    assert abs(first - again).mean() < 2 < abs(first[:, :, :64] - first[:, ::-1, :64]).mean()


def test_a_dense_run_and_one_without_twins_sample_once(make_config, samples):
    assert Previewer(make_config(), samples, None, tiny_vae).due(2) is False
    for changes in (
        {"preview": SECTION, "attention": {"schedule": "dense"}},
        {"preview": {**SECTION, "dense_twin": False}},
    ):
        assert [job.dense for job in Previewer(make_config(**changes), samples, None, tiny_vae).jobs] == [False, False]


def test_without_held_out_samples_the_size_is_the_data_s_own(make_config):
    assert Previewer(make_config(preview=SECTION), [], None, tiny_vae).shape == (16, 3, 8, 8)


def test_an_image_model_gets_the_condition_of_the_first_sample(make_config, samples, monkeypatch):
    seen = []

    def sample(model, **given):
        seen.append(given)
        return torch.zeros(1, *given["shape"]), []

    monkeypatch.setattr("fpsattention.training.watch.preview.sample", sample)
    samples[0] |= {"condition": torch.ones(20, 3, 8, 8), "image": torch.ones(257, 1280)}
    config = make_config(preview={**SECTION, "seeds": [5]})
    previewer = Previewer(config, samples, None, tiny_vae)
    assert previewer._sample(starting_model(config.model, 0), 2).keys() == {Job(0, 5, False), Job(0, 5, True)}
    assert all(
        given["condition"] is samples[0]["condition"] and given["image"] is samples[0]["image"] for given in seen
    )
    assert [given["attention"].schedule.is_dense for given in seen] == [False, True]


class Turns(World):
    """One of two processes; the other sends the same, or ``other``."""

    other = None

    def gather_objects(self, value):
        return [value, self.other or value]

    def barrier(self):
        pass


def test_processes_share_the_videos_and_take_equally_many_turns(make_config, samples, model, tmp_path):
    config = make_config(preview={**SECTION, "seeds": [1, 2, 3], "dense_twin": False})
    sampled = []
    for rank in (0, 1):
        previewer = Previewer(config, samples, None, tiny_vae, Turns(rank=rank, size=2))
        previewer._one = lambda model, job, mine=sampled: mine.append(job.seed) or torch.zeros(16, 3, 8, 8)
        previewer._sample(model, 2)
        if rank:
            assert previewer.render(model, 2) == []
    assert sampled == [1, 3, 2, 3, 2, 3]
    assert not (tmp_path / "out").exists()


def test_the_main_process_says_why_another_one_could_not_sample(make_config, samples, model, caplog, monkeypatch):
    monkeypatch.setattr(Turns, "other", (Job(0, 2, False), None, "CUDA out of memory"))
    config = make_config(preview={**SECTION, "seeds": [1, 2], "dense_twin": False})
    previewer = Previewer(config, samples, None, tiny_vae, Turns(rank=0, size=2))
    previewer._one = lambda model, job: torch.zeros(16, 3, 8, 8)
    assert previewer.render(model, 2) == []
    assert "no preview at step 2, sampling failed: CUDA out of memory; training goes on" in caplog.text


@pytest.mark.parametrize("what", ["sampling", "memory", "decoding", "disk"])
def test_failures_are_warnings(make_config, samples, model, caplog, tmp_path, monkeypatch, what):
    def fail(*_, **__):
        kinds = {"memory": torch.OutOfMemoryError, "sampling": RuntimeError, "decoding": ValueError, "disk": OSError}
        raise kinds[what](f"no {what}\nat all")

    previewer = Previewer(make_config(preview={**SECTION, "steps": 1}), samples, None, tiny_vae)
    place = {"sampling": "sample", "memory": "sample", "decoding": "to_frames", "disk": "write_video"}[what]
    monkeypatch.setattr(f"fpsattention.training.watch.preview.{place}", fail)
    assert previewer.render(model, 2) == []
    assert f"no {what}; training goes on" in caplog.text
    assert not list(tmp_path.glob("out/previews/*.png"))


@pytest.mark.slow
def test_two_processes_measure_and_sample_what_one_does(table, tmp_path):
    # Full precision: roundings to FP8 would turn differences of the last bit into visible ones.
    table["attention"]["schedule"] = "0.50 bf16 - all 2 2\n0.00 dense"
    table["model"]["dim"] = 256
    table["preview"] = {"every": 1, "steps": 2, "seeds": [1], "cfg": 2.0, "captions": ["", "twice", "thrice"]}
    table["preview"]["dense_twin"] = False
    file = tmp_path / "config.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    child = Path(__file__).with_name("watch_parts.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(child), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
    for case in ("shards", "tokens"):
        assert found[case]["sharded"] and found[case]["same"] and found[case]["jobs"] == 3
        assert found[case]["loss_error"] < 1e-5 and found[case]["latent_error"] < 1e-4, found
