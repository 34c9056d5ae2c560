"""Finds the real host and runs things in it.

``COMFYUI_PATH`` names a ComfyUI checkout (a wrong value is a failure), else the pack's own place below a
``custom_nodes`` folder decides, else everything here is skipped. ``REQUIRE_HOST=1`` turns that skip into a failure.
``COMFYUI_PYTHON`` names an interpreter with the host's requirements; the default is the one that runs pytest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.training.comfy_host import (
    TORCHVISION_SHIM,
    ComfyHost,
    ComfyHostError,
    find_checkout,
    host_environment,
)

HERE = Path(os.path.abspath(__file__)).parent
PACK = HERE.parent.parent
INSIDE = HERE / "inside"
collect_ignore_glob = ["inside/*", "testpack/*"]

# fps_common comes first: it tells the host's argument parser about the CPU before any other host module is imported.
_SCRIPT = (
    TORCHVISION_SHIM
    + """
import importlib, sys
sys.path.insert(1, sys.argv[1])
script = sys.argv[2]
importlib.import_module("fps_common")
importlib.import_module(script)
"""
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the host."""
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The host's folder; skips, or fails where a host is demanded or named wrongly."""
    try:
        path = find_checkout(HERE)
    except ComfyHostError as error:
        pytest.fail(str(error))
    if path is None:
        reason = "no ComfyUI host: set COMFYUI_PATH to a checkout, or put the pack into custom_nodes"
        if os.environ.get("REQUIRE_HOST") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def inside(checkout):
    """Run a script of ``inside/`` in a process of the host and return its results by case name."""

    def run(script: str, **variables: str) -> dict:
        env = host_environment(PACK) | {"FPS_PACK": str(PACK), "OMP_NUM_THREADS": "1"} | variables
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [python, "-c", _SCRIPT, str(INSIDE), script]
        done = subprocess.run(
            command, cwd=checkout, env=env, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("FPS-RESULT ")]
        assert lines, f"{script} printed no result:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return Results(json.loads(lines[-1].removeprefix("FPS-RESULT ")), done.stderr)

    return run


class Results(dict):
    """Results by case name; asking for one that raised fails with its traceback. ``log`` is what the host logged."""

    def __init__(self, results: dict, log: str):
        super().__init__(results)
        self.log = log

    def __getitem__(self, name: str) -> object:
        result = super().__getitem__(name)
        if isinstance(result, dict) and "error" in result:
            pytest.fail(f"{name} raised inside the host:\n{result['error']}")
        return result


@pytest.fixture(scope="session")
def tiny():
    """The module that writes tiny Wan checkpoints."""
    spec = importlib.util.spec_from_file_location("fps_tiny", INSIDE / "fps_tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server(checkout, tmp_path_factory):
    """A running host with this pack and the test pack."""
    with ComfyHost(checkout, tmp_path_factory.mktemp("host"), PACK, extra_packs=[HERE / "testpack"]) as host:
        yield host
