"""The command line on a real video file: decode, encode, train, resume, export; and what it says to bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fpsattention.kernels.checkpoint import read_header
from fpsattention.training import cli
from fpsattention.training.config_file import PACK, to_toml
from fpsattention.training.sample import write_video

VAE = PACK / "training" / "assets" / "wan2.1-tiny-vae.safetensors"


@pytest.fixture
def clip(tmp_path) -> Path:
    """48 frames of a bright square that moves over a gradient."""
    frames = torch.zeros(48, 64, 96, 3, dtype=torch.uint8)
    frames[..., 0] = torch.arange(96, dtype=torch.uint8) * 2
    for i in range(48):
        frames[i, 20:36, i : i + 16] = 230
    return write_video(tmp_path / "videos" / "clip.mp4", frames, 16)


@pytest.fixture
def run_file(make_config, clip, tmp_path) -> Path:
    data = {
        "videos": str(clip.parent), "frames": 9, "height": 64, "width": 64, "samples_per_clip": 3,
        "val_samples_per_clip": 2, "captions": "empty", "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    config = make_config(data=data, vae__path=str(VAE), model__text_dim=4096, optim__steps=4)
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return path


def test_a_video_becomes_a_checkpoint(run_file, tmp_path, capsys):
    assert cli.main(["--config", str(run_file)]) == 0
    out = tmp_path / "out"
    assert "4 steps in" in capsys.readouterr().out
    assert read_header(out / "tiny.safetensors").step == 4
    assert (out / "report.png").stat().st_size > 1000
    records = [json.loads(line) for line in (out / "loss.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    assert cli.main(["--config", str(run_file)]) == 2
    assert "go on with --resume auto" in capsys.readouterr().err
    assert cli.main(["--config", str(run_file), "--resume", "auto", "--set", "optim.steps=5"]) == 0
    assert read_header(out / "tiny.safetensors").step == 5


def test_bad_data_is_one_sentence_and_exit_code_two(run_file, clip, tmp_path, capsys):
    def fails(words: str, *arguments: str) -> None:
        assert cli.main(["--config", str(run_file), *arguments]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and words in errors[0], errors
        assert not (tmp_path / "out").exists()

    fails("no caption", "--set", "data.captions=error")
    fails("no such video or folder", "--set", "data.videos=nowhere")
    fails("not a Wan VAE", "--set", f"vae.path={_no_vae(tmp_path)}")
    fails("clip.mp4", "--set", f"output.dir={clip.as_posix()}/out")
    clip.write_bytes(clip.read_bytes()[:300])
    fails("clip.mp4")


def _no_vae(folder: Path) -> Path:
    from safetensors.torch import save_file

    path = folder / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    return path
