"""A real page of a real host: a running server, headless Chromium, playwright-core.

The host is found as in ``tests/host``. Chromium is named by ``CHROMIUM`` or found on the path; playwright-core is taken
from ``PLAYWRIGHT_FOLDER`` (the folder that holds its ``node_modules``), else installed by npm into a temporary folder.
What is missing is a reason to skip; ``REQUIRE_HOST=1`` makes a missing host a failure.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fpsattention.training.comfy_host import ComfyHost, ComfyHostError, find_checkout

HERE = Path(os.path.abspath(__file__)).parent
PACK = HERE.parent.parent
MARK = "FPS-PAGE "


def load_module(path: Path) -> ModuleType:
    """Import a script that belongs to no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    """The script that writes the workflows."""
    return load_module(HERE / "make_workflows.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module that writes tiny Wan checkpoints."""
    return load_module(PACK / "tests" / "host" / "inside" / "fps_tiny.py")


@pytest.fixture(scope="session")
def stand_ins() -> ModuleType:
    """The module that puts tiny files in the place of Wan's own."""
    return load_module(PACK / "tests" / "host" / "stand_ins.py")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running host with this pack and the test pack."""
    try:
        checkout = find_checkout(HERE)
    except ComfyHostError as error:
        pytest.fail(str(error))
    if checkout is None:
        reason = "no ComfyUI host: set COMFYUI_PATH to a checkout, or put the pack into custom_nodes"
        if os.environ.get("REQUIRE_HOST") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    base = tmp_path_factory.mktemp("host")
    with ComfyHost(checkout, base, PACK, extra_packs=[PACK / "tests" / "host" / "testpack"]) as host:
        yield host


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """Open workflows in the page of a server: ``browse(server, jobs, vue_nodes=...)`` returns results by job name."""
    chromium = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        pytest.skip("no Chromium: set CHROMIUM to its path")
    if shutil.which("node") is None:
        pytest.skip("no node: the page is driven by playwright-core")
    folder = os.environ.get("PLAYWRIGHT_FOLDER")
    if not folder:
        folder = str(tmp_path_factory.mktemp("playwright"))
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, "playwright-core"]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"playwright-core cannot be installed ({error}); set PLAYWRIGHT_FOLDER")

    def run(server: ComfyHost, jobs: list[dict], *, vue_nodes: bool) -> dict:
        settings = {
            "Comfy.TutorialCompleted": True,
            "Comfy.VueNodes.Enabled": vue_nodes,
            "Comfy.VueNodes.AutoScaleLayout": False,
            "Comfy.Workflow.ShowMissingModelsWarning": False,
        }
        for key, value in settings.items():
            server.post(f"/settings/{key}", value)
        work = tmp_path_factory.mktemp("page")
        (work / "jobs.json").write_text(json.dumps(jobs))
        done = subprocess.run(
            ["node", str(HERE / "page.mjs"), server.url, chromium, str(work / "profile"), str(work / "jobs.json")],
            env={**os.environ, "PLAYWRIGHT_FOLDER": folder},
            capture_output=True,
            text=True,
            timeout=300,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        assert lines, f"the page gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return json.loads(lines[-1].removeprefix(MARK))["results"]

    return run
