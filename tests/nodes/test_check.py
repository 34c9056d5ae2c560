"""The check: every part told or said to be untold, no folder named, other nodes' hooks by name, steps to take."""

from __future__ import annotations

import os
import sys
import types

import pytest
import torch
from fpsattention.kernels import cards
from fpsattention.kernels.calibration_file import ENVIRONMENT
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes import check_environment
from fpsattention.nodes.check_environment import Report, environment, scrub
from fpsattention.nodes.check_model import describe_model, hooks, name_of
from fpsattention.nodes.patch import apply_patch
from fpsattention.nodes.settings import choose_settings

SCHEDULE = Schedule.parse("0.90 dense\n0.00 fp8 x1 all 60% 60%")


@pytest.fixture(autouse=True)
def calibration(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache" / "calibration.json"))


def told(model=None) -> tuple[str, list[str]]:
    report = Report()
    environment(report)
    if model is not None:
        describe_model(report, model)
    return "\n".join(report.lines), report.steps


def test_everything_is_told_without_a_card():
    text, steps = told()
    for words in (
        *("fpsattention 0.1.0", f"torch        {torch.__version__}", "CPU", "Triton", "bf16 steps", "triton-int8"),
        *("fp8 steps    auto takes reference", "reference    can run", "~/cache/calibration.json", "0 measurements"),
    ):
        assert words in text, words
    assert any("NVIDIA card" in step for step in steps) and any("FPSAttention Benchmark once" in step for step in steps)


def card(monkeypatch, capability=(9, 0), hip=None, triton="3.7.1", system="Linux"):
    """Let the check believe in a card."""
    monkeypatch.setattr(check_environment, "host_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(cards, "driver_version", lambda device: "580.65")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(check_environment.platform, "system", lambda: system)

    def version(name):
        if name == "triton" and triton and system == "Linux":
            return triton
        raise check_environment.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(check_environment.metadata, "version", version)


def test_a_card_is_described(monkeypatch):
    card(monkeypatch)
    text, _ = told()
    assert (
        "cuda: NVIDIA Test, compute capability 9.0, driver 580.65" in text and "80.0 GiB memory, 10.0 GiB free" in text
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"triton": None}, 'pip install -U "triton>=3.4"'),
        ({"triton": None, "system": "Windows"}, 'pip install -U "triton-windows>=3.4"'),
        ({"triton": "3.1.0"}, "Update Triton to 3.4 or newer"),
        ({"capability": (7, 5)}, "older than the kernels' oldest"),
        ({"hip": "6.4"}, "AMD cards are not supported"),
    ],
    ids=str,
)
def test_what_to_do_on_a_card(monkeypatch, changes, words):
    card(monkeypatch, **changes)
    _, steps = told()
    assert any(words in step for step in steps), steps


def test_a_card_without_a_fast_backend_stays_dense(monkeypatch):
    """What the check says of auto is what the patch does."""
    card(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text, steps = told()
    for attention in ("fp8", "bf16"):
        line = next(line for line in text.splitlines() if line.startswith(f"{attention} steps"))
        assert "auto leaves them dense (head dimension 128, bfloat16): no fast backend runs here (" in line
    assert "auto takes" not in text and "reference    can run" in text
    assert any("backend auto leaves attention dense, and the reference" in step for step in steps)


def test_a_missing_compiler_is_a_step(monkeypatch):
    card(monkeypatch)
    reason = "triton cannot reach the card (RuntimeError: x); it needs a C compiler and Python's headers"
    monkeypatch.setattr(check_environment, "backends", lambda *args: [("triton-fp8", reason), ("reference", None)])
    _, steps = told()
    assert any("build-essential and python3-dev" in step for step in steps)


def test_what_fails_costs_its_line(monkeypatch):
    def broken(*args):
        raise RuntimeError("driver mismatch in /srv/somebody/venv/lib/libcuda.so\nmore")

    for name in ("host_device", "host_version", "host_attention"):
        monkeypatch.setattr(check_environment, name, broken)
    monkeypatch.setattr(check_environment.cards, "runtime", broken)
    text, _ = told()
    assert text.count("could not be told (RuntimeError: driver mismatch in .../libcuda.so)") >= 6
    assert "somebody" not in text and "Python" in text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cannot open /usr/lib/x/libcuda.so.1: no", "cannot open .../libcuda.so.1: no"),
        ("'/opt/a/b.py'", "'.../b.py'"),
        (r"D:\Joe\ComfyUI\venv\python.exe fails", ".../python.exe fails"),
        ("https://github.com/a/b and 1/2, a/b, x1", "https://github.com/a/b and 1/2, a/b, x1"),
        ("module /data/joe/custom_nodes/kj.nodes.f", "module .../kj.nodes.f"),
        ("module HOME/ComfyUI/custom_nodes/Some-Pack.nodes.fn", "module .../Some-Pack.nodes.fn"),
        ("'HOME/notes.txt', file://HOME/a b/c", "'.../notes.txt', file://.../a b/c"),
        ("HOME2/secret/x.py and HOME", ".../x.py and ~"),
        (r"HOME\ComfyUI\custom_nodes\x", ".../x"),
        ("about ~30 % of 1/2", "about ~30 % of 1/2"),
    ],
)
def test_folders_are_left_out(text, expected):
    assert scrub(text.replace("HOME", os.path.expanduser("~"))) == expected


def test_a_home_with_spaces_is_left_out(monkeypatch):
    monkeypatch.setenv("HOME", "/home/Jo Ann")
    assert scrub("in /home/Jo Ann/models/x.safetensors") == "in .../x.safetensors"


def a_neighbor(*args, **kwargs):
    """A hook of another node."""


def test_a_model_is_described(host):
    model = apply_patch(
        host.Patcher(host.WanModel(layers=4)), choose_settings(Header(SCHEDULE, trainer="me", step=7), None, "auto")
    )
    text, steps = told(model)
    assert "Inner, WanModel" in text and "4 layers, 2 heads of 128, computes in float32" in text
    assert "trained by me, 7 steps, 64 slots per tile, tile chosen per size" in text and "0.90    dense" in text
    assert "yes, schedule from the model file, backend auto" in text and "hooks        none of other nodes" in text
    assert not any("not patched" in step for step in steps)


def test_a_model_without_anything(host):
    text, steps = told(host.Patcher(host.WanModel()))
    assert "carries no FPSAttention schedule" in text and any("not patched" in step for step in steps)
    assert any("preset mild" in step for step in steps)


def test_other_nodes_hooks_are_named(host):
    model = host.Patcher(host.WanModel())
    options = model.model_options["transformer_options"]
    options["optimized_attention_override"] = a_neighbor
    for index in range(3):
        model.set_model_patch_replace(a_neighbor, "dit", "double_block", index)
    patched = apply_patch(model, choose_settings(None, SCHEDULE, "auto"))
    patched.model_options["transformer_options"]["patches"] = {"attn1_patch": [a_neighbor]}
    patched.add_wrapper_with_key("diffusion_model", "easycache", a_neighbor)
    patched.object_patches = {"diffusion_model.blocks.0.self_attn.forward": a_neighbor}
    patched.patches = {"a": [], "b": []}
    lines = hooks(patched)
    mine = name_of(a_neighbor)
    assert f"attention override: {mine}" in lines
    assert f"block patch on dit double_block: {mine} (3 blocks)" in lines
    assert f"patch attn1_patch: {mine}" in lines and "wrapper diffusion_model by easycache" in lines
    assert "object patch: diffusion_model.blocks.0.self_attn.forward" in lines
    assert "weight patches (LoRA and the like) on 2 tensors" in lines
    assert not any("fpsattention.nodes" in line for line in lines)


@pytest.mark.parametrize(
    "model",
    [None, 3, object(), types.SimpleNamespace(), types.SimpleNamespace(model_options={"transformer_options": 5})],
)
def test_a_model_that_is_none_is_survived(model):
    report = Report()
    describe_model(report, model)
    assert any("could not be told" in line for line in report.lines) and report.steps


def test_no_folder_is_named(host, tmp_path):
    text, steps = told(host.Patcher(host.WanModel()))
    told_all = text + "\n".join(steps)
    for folder in {str(tmp_path), os.path.dirname(os.__file__), sys.prefix, os.getcwd()}:
        assert folder not in told_all
