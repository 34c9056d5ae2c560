"""The demo: which rows, which ratio, what its caption says, where its clip comes from, and how it fails."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from fpsattention.kernels.schedule import Schedule
from fpsattention.training import prepare
from fpsattention.training.comfy_host import ComfyHostError
from fpsattention.training.config import ConfigError
from fpsattention.training.config_file import load_config
from fpsattention.training.data import demo_clip
from fpsattention.training.data.errors import DataError, VideoError
from fpsattention.training.demo import cli, sampling, table
from fpsattention.training.demo.folder import claim
from fpsattention.training.demo.rows import Row, fp8_alone, recovered
from fpsattention.training.distributed import DeviceError
from fpsattention.training.failures import NonFiniteError, VaeError
from fpsattention.training.sparse import DENSE, SparseAttention
from fpsattention.training.state import SnapshotError
from fpsattention.training.validation import Validation


def rows(**losses: float) -> dict[str, Row]:
    losses = {"base": 1.0, "fp8": 1.0, **losses}
    return {
        key: Row(key, f"row {key}", "base", DENSE, Validation(loss, {0.9: loss, 0.5: loss}, 4, 0.0), 1.0)
        for key, loss in losses.items()
    }


def test_the_strict_ratio_is_taken_against_both_controls():
    result = rows(base=1.0, A=1.2, D=0.9, B=1.1, C=1.0)
    assert recovered(result) == pytest.approx(0.5)
    assert "**50%**" in table.markdown(result, {})


@pytest.mark.parametrize("losses", [{"A": 1.02, "B": 1.1}, {"A": 1.2, "B": 0.9}], ids=["small gap", "no gap"])
def test_no_ratio_is_stated_where_there_is_no_gap(losses):
    result = rows(base=1.0, D=0.9, C=0.95, **losses)
    assert recovered(result) is None
    assert "not stated" in table.markdown(result, {})


def test_fp8_alone_opens_every_window_and_keeps_the_rest():
    text = "0.90 dense\n0.50 fp8 x2 all 4 4\n0.00 bf16 - 2 50% 4"
    opened = fp8_alone(SparseAttention(Schedule.parse(text), slots=16)).schedule
    assert opened == Schedule.parse("0.90 dense\n0.50 fp8 x2 all all all\n0.00 bf16 - all all all")


def test_the_table_says_what_it_does_not_show():
    text = table.markdown(rows(fp8=1.0, A=1.2, D=0.9, B=1.1, C=1.0), {"videos": "none"})
    assert "- videos: none" in text
    for words in (
        "does not show", "one seed", "one clip", "tiny model", "unseen time but not on unseen content",
        "no claim about Wan2.1 1.3B or 14B", "not faster than dense",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"A": 1.2}, "pays +20.0% for its sparsity (A over base)"),
        ({"A": 0.99}, "pays nothing for its sparsity (-1.0%, A over base)"),
        ({"fp8": 1.0012}, "FP8 alone changes the loss by +0.12%, next to nothing."),
        ({"fp8": 1.02}, "FP8 alone changes the loss by +2.00%, which is not below 0.5%."),
        ({"B": 1.25, "C": 1.0}, "ends 20.0% below the dense fine-tune that is used sparse"),
        ({"B": 1.0, "C": 1.0}, "does not end below the dense fine-tune that is used sparse"),
        ({"C": 1.0, "D": 0.9}, "stays above the one that is used dense"),
        ({"C": 0.8, "D": 0.9}, "is not above the one that is used dense"),
    ],
)
def test_the_caption_says_what_was_measured(losses, words):
    assert words in table.caption(rows(**{"A": 1.2, "D": 0.9, "B": 1.1, "C": 1.0, **losses}))


FAILURES = [
    DeviceError("device is 'cuda' but torch sees no CUDA device; set device = 'cpu'"),
    NonFiniteError("loss was not finite 5 steps in a row"),
    SnapshotError("step-000001: is incomplete"),
    ModuleNotFoundError("No module named 'diffusers'"),
    OSError(errno.ENOSPC, "No space left on device", "out/table.md"),
    VaeError("vae.safetensors: not a Wan VAE."),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_is_one_sentence(error, monkeypatch, capsys, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("source", ["--clip", "CLIP", "the demo's own"])
def test_the_clip_reaches_the_run(source, monkeypatch, tmp_path):
    """Whatever its name has in it, and without a word in the environment."""
    mine = str(tmp_path / 'my "clip" # 1.mp4')
    monkeypatch.delenv("CLIP", raising=False)
    if source == "CLIP":
        monkeypatch.setenv("CLIP", mine)
    monkeypatch.setattr(demo_clip, "demo_clip", lambda path: path)
    seen = []

    def stop(config, world):
        seen.append(config)
        raise DataError("stop")

    monkeypatch.setattr(prepare, "prepare_data", stop)
    assert cli.main(["--out", str(tmp_path / 'o"ut'), *(["--clip", mine] if source == "--clip" else [])]) == 2
    own = str(cli.PACK / ".cache" / "clip" / "bigbuckbunny.mp4")
    assert seen[0].data.videos == (own if source == "the demo's own" else mine)
    assert seen[0].output.dir == (tmp_path / 'o"ut').as_posix()
    assert os.environ.get("CLIP") == (mine if source == "CLIP" else None)


def sample_with(sampler: str, tmp_path, monkeypatch):
    """Run the sampling with a ComfyUI at hand, and no row for diffusers to sample."""
    monkeypatch.setattr(sampling, "load_vae", lambda _: None)
    request = sampling.Request(frames=5, height=32, width=32)
    config = load_config()
    files = {key: tmp_path / f"{key}.safetensors" for key in ("base", "A", "D", "B", "C")}
    return sampling.sample_videos(
        config, None, {}, files, request, tmp_path, sampler, tmp_path, torch.device("cpu"), lambda _: None
    )


@pytest.mark.parametrize(
    "error",
    [ComfyHostError("it died"), VideoError("a.mp4: the file is empty; replace it."), OSError(errno.ENOSPC, "full")],
    ids=lambda error: type(error).__name__,
)
def test_a_comfyui_that_fails_gives_way_unless_it_was_named(error, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr(sampling, "_through_comfyui", fail)
    with pytest.raises(type(error)):
        sample_with("comfyui", tmp_path, monkeypatch)
    monkeypatch.setattr(sampling, "SAMPLED", ())
    videos, how = sample_with("auto", tmp_path, monkeypatch)
    assert videos == {} and "through diffusers" in how and f"ComfyUI failed: {error.args[-1]}" in how


def test_a_workflow_that_saves_no_video_is_a_failure(monkeypatch, tmp_path):
    class Host:
        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def add_model(self, path, *_, **__):
            return path.name

        def prompt(self, graph):
            return {}

        def files(self, entry):
            return [tmp_path / "picture.png"]

    monkeypatch.setattr(sampling, "ComfyHost", Host)
    with pytest.raises(ComfyHostError, match="names no mp4 that it saved"):
        sample_with("comfyui", tmp_path, monkeypatch)


def test_a_named_comfyui_that_is_missing_is_told_before_any_work(monkeypatch):
    monkeypatch.setattr(sampling, "find_checkout", lambda _: None)
    with pytest.raises(ComfyHostError, match="set COMFYUI_PATH to a checkout"):
        sampling.find_host("comfyui")
    assert sampling.find_host("auto") is None and sampling.find_host("diffusers") is None


def test_the_demo_takes_no_folder_that_is_not_its_own(tmp_path):
    mine = tmp_path / "holiday.mp4"
    mine.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="files that are not the demo's"):
        claim(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        claim(mine)
    assert mine.read_bytes() == b"mine"


def test_an_earlier_demo_goes_and_what_was_put_beside_it_stays(tmp_path):
    folder = tmp_path / "demo"
    claim(folder)
    (folder / "comfyui" / "host").mkdir(parents=True)
    for name in ("A_seed1.mp4", "table.md", "loss.png", "wan2.1-tiny-fpsattention.safetensors", "mine.mp4"):
        (folder / name).touch()
    claim(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".fpsattention-demo", "mine.mp4"]
