"""How the host is found: named wrongly is a failure, absent is a skip with a reason, demanded and absent a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.training.comfy_host import ComfyHostError, find_checkout, host_environment

ROOT = Path(__file__).parent.parent.parent


def make_host(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "comfyui_version.py").write_text('__version__ = "0.0.0"\n')
    return folder


def test_a_named_host_is_taken(tmp_path, monkeypatch):
    host = make_host(tmp_path / "host")
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    assert find_checkout(ROOT) == host


def test_a_wrong_name_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(ComfyHostError, match="is not a ComfyUI checkout"):
        find_checkout(ROOT)


def test_the_host_around_the_pack_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    host = make_host(tmp_path / "host")
    (host / "custom_nodes").mkdir()
    pack = host / "custom_nodes" / "pack"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tests").mkdir(parents=True)
    pack.symlink_to(elsewhere, target_is_directory=True)
    assert find_checkout(pack / "tests") == host
    assert find_checkout(elsewhere / "tests") is None


def test_the_pack_is_taken_off_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    assert host_environment(ROOT)["PYTHONPATH"] == str(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert "PYTHONPATH" not in host_environment(ROOT)


@pytest.mark.parametrize(
    "variables, code, words",
    [
        ({}, 0, "no ComfyUI host: set COMFYUI_PATH"),
        ({"REQUIRE_HOST": "1"}, 1, "no ComfyUI host: set COMFYUI_PATH"),
        ({"COMFYUI_PATH": "nowhere"}, 1, "is not a ComfyUI checkout"),
    ],
    ids=["absent", "demanded", "wrong"],
)
def test_what_pytest_does_about_it(variables, code, words):
    if not variables.get("COMFYUI_PATH") and "custom_nodes" in ROOT.parts:
        pytest.skip("the pack lies in a host")
    env = {k: v for k, v in os.environ.items() if k not in ("COMFYUI_PATH", "REQUIRE_HOST")} | variables
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/host/test_contract.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout[-2000:]
    assert words in done.stdout
