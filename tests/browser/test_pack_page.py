"""What the page offers beside the nodes, per language: the subgraph in the search, help pages with their pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", params=["en", "zh"])
def page(request, server, drive, tmp_path_factory):
    """The language, and what the page of the server told in it."""
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": True, "Comfy.Locale": request.param}
    told = drive(server, "pack.mjs", {"pictures": str(tmp_path_factory.mktemp("pictures"))}, settings)
    server.post("/settings/Comfy.Locale", "en")
    assert told["errors"] == []
    return request.param, told


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
