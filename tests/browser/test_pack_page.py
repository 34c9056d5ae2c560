"""What the page offers beside the nodes: the subgraph in the search, and help pages with their pictures, per language."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MARK = "FPS-PAGE "


@pytest.fixture(scope="module", params=["en", "zh"])
def page(request, server, browse, tmp_path_factory):
    """The language, and what the page of the server told in it."""
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": True, "Comfy.Locale": request.param}
    for key, value in settings.items():
        server.post(f"/settings/{key}", value)
    work = tmp_path_factory.mktemp("page")
    done = subprocess.run(
        ["node", str(HERE / "pack.mjs"), server.url, browse.chromium, str(work / "profile"), str(work)],
        env={**os.environ, "PLAYWRIGHT_FOLDER": browse.folder},
        capture_output=True,
        text=True,
        timeout=300,
    )
    server.post("/settings/Comfy.Locale", "en")
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    assert lines, f"the page gave no result:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return request.param, json.loads(lines[-1].removeprefix(MARK))


@pytest.mark.host
def test_the_host_offers_the_subgraph(server):
    (found,) = [entry for entry in server.get("/global_subgraphs").items() if "FPSAttention" in entry[1]["name"]]
    assert found[1]["source"] == "custom_node"
    data = server.get(f"/global_subgraphs/{found[0]}")["data"]
    assert data == (ROOT / "subgraphs" / f"{found[1]['name']}.json").read_text(encoding="utf-8")


@pytest.mark.browser
def test_the_subgraph_is_found_and_works(page):
    """Added through the search: three widgets outside, schedule and patch inside, and the server gets both."""
    _, told = page
    assert told["errors"] == []
    found = told["blueprint"]
    assert found["title"] == "Wan2.1 + FPSAttention"
    assert [widget["name"] for widget in found["widgets"]] == ["preset", "schedule", "backend"]
    assert found["widgets"][0]["value"] == "mild"
    assert Schedule.parse(found["widgets"][1]["value"]) == Schedule.parse(PRESETS["mild"])
    sent = {node["class_type"]: (key, node["inputs"]) for key, node in found["output"].items()}
    patch, schedule = sent["FPSAttentionApply"], sent["FPSAttentionSchedule"]
    assert patch[1]["model"] == [sent["UNETLoader"][0], 0] and patch[1]["schedule"] == [schedule[0], 0]
    assert sent["ModelSamplingSD3"][1]["model"] == [patch[0], 0]
    assert schedule[1]["preset"] == "mild"


@pytest.mark.browser
@pytest.mark.parametrize("node", ["FPSAttentionSchedule", "FPSAttentionReport"])
def test_help_opens_in_the_page(page, node):
    """In the page's language, every picture loaded from the pack."""
    language, told = page
    file = {"en": f"{node}.md", "zh": f"{node}/zh.md"}[language]
    heading = (ROOT / "nodes" / "web" / "docs" / file).read_text(encoding="utf-8").splitlines()[0]
    assert told["help"][node]["text"].splitlines()[0] == heading.removeprefix("# ")
    pictures = told["help"][node]["pictures"]
    assert len(pictures) == 1 and all(p["width"] > 300 and "/docs/images/" in p["src"] for p in pictures)
