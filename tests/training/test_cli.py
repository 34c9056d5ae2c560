"""The command line: the plan, the exit codes, and that importing and planning need no diffusers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.training import cli
from fpsattention.training.config_file import to_toml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config_file(make_config, tmp_path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(make_config()), encoding="utf-8")
    return path


def test_dry_run_tells_the_plan(config_file, capsys):
    assert cli.main(["--config", str(config_file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for words in (
        "0.48 M parameters: dim 128 (1 heads of 128), ffn 64, 2 layers",
        "9 frames of 64 x 64 at 16 fps",
        "48 tokens: grid 3 x 4 x 4",
        "fp8 on reference (cpu)",
        "sigma >= 0.90",
        "mean density over the training steps",
        "6 steps of 2 x 1 samples",
        "memory",
        "clip.mp4 (not there yet)",
        "tiny.safetensors",
    ):
        assert words in out, words


def test_dry_run_imports_neither_diffusers_nor_transformers(config_file):
    code = (
        "import sys; from fpsattention.training.cli import main\n"
        f"assert main(['--config', {str(config_file)!r}, '--dry-run']) == 0\n"
        "print(sorted({'diffusers', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_print_config(config_file, capsys):
    assert cli.main(["--config", str(config_file), "--print-config", "--set", "seed=5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("seed = 5") and "[optim]" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "optim.stepz=3"], "unknown key optim.stepz (did you mean steps?)"),
        (["--set", "attention.backend=triton-fp8"], "the backend 'triton-fp8' cannot run here"),
        (["--set", 'model={path="none.safetensors"}'], "no file"),
        ([], "no such VAE; set vae.path"),
    ],
)
def test_bad_input_is_exit_code_two_and_one_sentence(config_file, capsys, arguments, words):
    assert cli.main(["--config", str(config_file), *arguments]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(err) == 1 and words in err[0]


@pytest.mark.parametrize("module", ["training.run", "fpsattention.training.run"])
def test_launcher_runs_under_both_names(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--resume" in done.stdout
