"""Files from saved states, conversions, and what files are: through the command lines, as people run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fpsattention.kernels.checkpoint import read_header
from fpsattention.training import export_cli, inspect_cli
from fpsattention.training.export_file import export_run
from fpsattention.training.lora import add_lora, lora_state
from fpsattention.training.model import original_state, random_model
from fpsattention.training.names import WanShape
from fpsattention.training.pieces import Piece
from fpsattention.training.prepare import data_grid
from fpsattention.training.state import save_step
from safetensors.torch import load_file, save_file

from .wan_files import SMALL, random_state, write_form

ROOT = Path(__file__).resolve().parents[2]


def save(config, step: int, model, average: bool = False) -> Path:
    """Write a state as the trainer does: all that is trained, and its average."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    pieces = {f"model/{name}": Piece.of(tensor) for name, tensor in trained.items()}
    if average:
        pieces |= {f"ema/{name}": Piece.of(tensor + 1) for name, tensor in trained.items()}
    meta = {"config": config.model_dump(mode="json")}
    return save_step(Path(config.checkpoint.dir), step, pieces, meta, keep=3)


def run(module, *arguments) -> int:
    return module.main([str(argument) for argument in arguments])


@pytest.fixture
def model():
    return random_model(WanShape(128, 64, 2, text_dim=16), 0)


def test_a_saved_state_becomes_the_file_that_the_run_would_write(make_config, model, tmp_path, capsys):
    config = make_config()
    state = save(config, 4, model)
    assert run(export_cli, state) == 0
    said = capsys.readouterr().out
    path = tmp_path / "out" / "tiny-000004.safetensors"
    assert str(path) in said
    direct = export_run(config, model, 4, data_grid(config.data))
    assert path.read_bytes() == direct.read_bytes()
    assert read_header(path).step == 4


def test_the_newest_state_of_a_run_is_taken_and_its_average(make_config, model, tmp_path):
    config = make_config()
    save(config, 2, model)
    with torch.no_grad():
        model.proj_out.bias.fill_(5)
    save(config, 4, model, average=True)
    folder, out = tmp_path / "checkpoints", tmp_path / "out.safetensors"
    wanted = original_state(model)
    for arguments, added in (([], 1), (["--no-average"], 0)):
        assert run(export_cli, folder, "--dtype", "fp32", "--out", out, *arguments) == 0
        found = load_file(out)
        assert all(torch.equal(found[name], wanted[name] + added) for name in wanted)
        assert read_header(out).step == 4
    assert run(export_cli, tmp_path, "--dtype", "fp8", "--out", out) == 0  # the folder that holds checkpoints/
    assert load_file(out)["blocks.0.ffn.0.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_a_state_with_adapters_becomes_a_lora(make_config, model, tmp_path, capsys, alpha):
    section = {"rank": 4} if alpha is None else {"rank": 4, "alpha": alpha}
    config = make_config(lora=section)
    add_lora(model, config.lora, seed=1)
    state = save(config, 6, model)
    out = tmp_path / "lora.safetensors"
    assert run(export_cli, state, "--out", out, "--dtype", "fp32") == 0
    found, wanted = load_file(out), lora_state(model)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert read_header(out).step == 6
    direct = load_file(export_run(config, model, 6, None))
    assert all(torch.equal(direct[n], wanted[n].bfloat16() if "lora_" in n else wanted[n]) for n in wanted)
    assert run(inspect_cli, out) == 0
    said = capsys.readouterr().out
    assert "12, 12 of them named diffusion_model.*" in said and "rank" in said and "6 steps" in said
    assert run(export_cli, state, "--out", out, "--dtype", "fp8") == 2
    assert "exported as bf16 or fp32, not fp8" in capsys.readouterr().err


def test_states_that_cannot_be_used(make_config, model, tmp_path, capsys):
    config = make_config()
    state = save(config, 2, model)
    piece = next(path for path in state.iterdir() if path.suffix == ".distcp")
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-1] + b"x")
    assert run(export_cli, state) == 2
    assert "does not have the recorded hash" in capsys.readouterr().err
    piece.write_bytes(whole)
    assert run(export_cli, tmp_path / "step-000009") == 2
    assert "no such checkpoint directory" in capsys.readouterr().err
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    assert run(export_cli, state, "--out", blocked / "a.safetensors") == 2
    assert "could not be written" in capsys.readouterr().err
    assert run(export_cli, state, "--out", tmp_path) == 2
    assert "is a folder; name the file in it" in capsys.readouterr().err


def test_other_models_are_converted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = random_state(SMALL["flf"], dtype=torch.bfloat16)
    pipeline = write_form("diffusers pipeline", tmp_path, state)
    assert run(export_cli, pipeline) == 0
    found = load_file(tmp_path / "pipeline-bf16.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert run(export_cli, "pipeline-bf16.safetensors", "--out", tmp_path / "pipeline-bf16.safetensors") == 2
    assert "is what is read; write to another file" in capsys.readouterr().err
    monkeypatch.chdir(pipeline)
    assert run(export_cli, ".") == 0 and (pipeline / "pipeline-bf16.safetensors").is_file()
    capsys.readouterr()
    assert run(export_cli, tmp_path / "nothing") == 2
    assert capsys.readouterr().err.startswith("error: there is no file")


def test_inspect_tells_what_a_file_is(make_config, model, tmp_path, capsys):
    config = make_config()
    state = save(config, 2, model)
    path = export_run(config, model, 2, data_grid(config.data))
    image = write_form("comfyui", tmp_path / "image", random_state(SMALL["flf"], dtype=torch.bfloat16))
    expected = {
        path: [
            "text-to-video",
            "dim 128 (1 heads of 128)",
            "BF16",
            "FPSAttention v1, trained for 2 steps",
            "fp8",
            "slots",
        ],
        image: ["first-last-frame", "36 in, 16 out", "514 x 1280", "ComfyUI's (with prefix)", "an ordinary file"],
        state: ["training state of step 2", "tiny"],
    }
    for file, words in expected.items():
        assert run(inspect_cli, file) == 0
        said = capsys.readouterr().out
        assert all(word in said for word in words), said
    save_file({"decoder.upsamples.0.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    assert run(inspect_cli, tmp_path / "vae.safetensors") == 2
    assert "is a Wan VAE" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("module", ["export", "inspect"])
def test_the_launchers_run(tmp_path, module):
    path = write_form("original", tmp_path, random_state(SMALL["t2v"]))
    out = ["--out", str(tmp_path / "out.safetensors")] if module == "export" else []
    done = subprocess.run(
        [sys.executable, "-m", f"training.{module}", str(path), *out],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "safetensors" in done.stdout
