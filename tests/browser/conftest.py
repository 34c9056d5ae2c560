"""A real page of a real host: a running server, headless Chromium, playwright-core.

The host is found as in ``tests/host``. Chromium is named by ``CHROMIUM`` or found on the path; playwright-core is taken
from ``PLAYWRIGHT_FOLDER`` (the folder that holds its ``node_modules``), else installed by npm into a temporary folder.
What is missing, of host, Chromium, node, playwright-core and axe-core, is a reason to skip, and with ``REQUIRE_HOST=1``
a failure. ``COMFYUI_FRONTEND`` names the ``static`` folder of another frontend than the installed one.
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


def missing(reason: str) -> None:
    """Skip for ``reason``, or fail where a host is demanded."""
    if os.environ.get("REQUIRE_HOST") == "1":
        pytest.fail(f"REQUIRE_HOST=1, but there is {reason}")
    pytest.skip(reason)


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
        missing("no ComfyUI host: set COMFYUI_PATH to a checkout, or put the pack into custom_nodes")
    base = tmp_path_factory.mktemp("host")
    frontend = os.environ.get("COMFYUI_FRONTEND")
    arguments = ["--front-end-root", frontend] if frontend else []
    extra = [PACK / "tests" / "host" / "testpack"]
    with ComfyHost(checkout, base, PACK, extra_packs=extra, arguments=arguments) as host:
        yield host


def npm_folder(tmp_path_factory, package: str) -> Path | None:
    """The folder that holds ``node_modules/<package>``: ``PLAYWRIGHT_FOLDER``, else installed; None if that fails."""
    folder = os.environ.get("PLAYWRIGHT_FOLDER")
    if folder and (Path(folder) / "node_modules" / package).is_dir():
        return Path(folder)
    made = tmp_path_factory.mktemp(package)
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(made), package]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError):
        return None
    return made


@pytest.fixture(scope="session")
def drive(tmp_path_factory):
    """Run a script in the page of a server: ``drive(server, script, job, settings)`` returns what it prints.

    The script gets the server's address, Chromium, a fresh profile folder and the job's file.
    """
    chromium = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        missing("no Chromium: set CHROMIUM to its path")
    if shutil.which("node") is None:
        missing("no node: the page is driven by playwright-core")
    folder = npm_folder(tmp_path_factory, "playwright-core")
    if folder is None:
        missing("no playwright-core, and npm cannot install it: set PLAYWRIGHT_FOLDER")
    axe = npm_folder(tmp_path_factory, "axe-core")
    if axe is None and os.environ.get("REQUIRE_HOST") == "1":
        missing("no axe-core, and npm cannot install it: put it beside playwright-core")
    env = {**os.environ, "PLAYWRIGHT_FOLDER": str(folder), "AXE_FOLDER": str(axe or "")}

    def run(server: ComfyHost, script: str, job: object, settings: dict, timeout: float = 300) -> dict:
        for key, value in settings.items():
            server.post(f"/settings/{key}", value)
        work = tmp_path_factory.mktemp("page")
        (work / "job.json").write_text(json.dumps(job))
        done = subprocess.run(
            ["node", str(HERE / script), server.url, chromium, str(work / "profile"), str(work / "job.json")],
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        assert lines, f"the page gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return json.loads(lines[-1].removeprefix(MARK))

    return run


def page_settings(*, vue_nodes: bool, **more: object) -> dict:
    """The host's settings for a page without welcome and warnings, in one of its two renderers."""
    return {
        "Comfy.TutorialCompleted": True,
        "Comfy.VueNodes.Enabled": vue_nodes,
        "Comfy.VueNodes.AutoScaleLayout": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False,
        **more,
    }


@pytest.fixture(scope="session")
def browse(drive):
    """Open workflows in the page of a server: ``browse(server, jobs, vue_nodes=...)`` returns results by job name."""

    def run(server: ComfyHost, jobs: list[dict], *, vue_nodes: bool) -> dict:
        found = drive(server, "page.mjs", jobs, page_settings(vue_nodes=vue_nodes))
        assert found["startup"] == []
        return found["results"]

    return run


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> str:
    """The folder for screenshots; ``FPS_SHOTS`` names one to look into."""
    folder = Path(os.environ.get("FPS_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes-2"])
def renderer(request) -> bool:
    """Whether Nodes 2.0 draws the page."""
    return request.param


@pytest.fixture(scope="module")
def editor_settings():
    """What the page is set to for the schedule editor."""

    def made(renderer: bool, theme: str = "dark", locale: str = "en") -> dict:
        return {
            "Comfy.TutorialCompleted": True,
            "Comfy.VueNodes.Enabled": renderer,
            "Comfy.VueNodes.AutoScaleLayout": False,
            "Comfy.Workflow.ShowMissingModelsWarning": False,
            "Comfy.ColorPalette": theme,
            "Comfy.Locale": locale,
        }

    return made


@pytest.fixture
def check(page, request):
    """The findings of the check that the test is named after."""
    name = request.node.originalname.removeprefix("test_")
    words = name.split("_")
    found = page["results"][words[0] + "".join(word.capitalize() for word in words[1:])]
    assert "failed" not in found, found["failed"]
    return found
