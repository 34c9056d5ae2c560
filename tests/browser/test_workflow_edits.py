"""Every shipped workflow with a schedule node, in both renderers: edited, saved, reloaded and queued from the page.

The page sends the workflow as it is shipped; on its way to the server its sizes and encoders become those that tiny
files can run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "workflows"
NODE = "FPSAttentionSchedule"


def graph_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_of(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def schedule_node(name: str) -> int | None:
    return next((node["id"] for node in graph_of(name)["nodes"] if node["type"] == NODE), None)


NAMES = [name for name in sorted(path.stem for path in FOLDER.glob("*.json")) if schedule_node(name) is not None]

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes-2"])
def found(request, server, drive, tiny, stand_ins) -> dict:
    """What the page told of every workflow."""
    workflows = []
    for name in NAMES:
        api = api_of(name)
        stand_ins.offer(server.base, api, tiny, {})
        stand_ins.offer_encoders(server.base, api)
        small = stand_ins.reduced(api)
        path = str(FOLDER / f"{name}.json")
        workflows.append({"name": name, "path": path, "id": schedule_node(name), "small": small})
    settings = {
        "Comfy.TutorialCompleted": True,
        "Comfy.VueNodes.Enabled": request.param,
        "Comfy.VueNodes.AutoScaleLayout": False,
        "Comfy.Workflow.ShowMissingModelsWarning": False,
    }
    told = drive(server, "workflow_edits.mjs", {"workflows": workflows}, settings)
    assert told["startup"] == []
    return told["results"]


@pytest.fixture
def edited(found, name) -> dict:
    assert "failed" not in found[name], found[name]["failed"]
    return found[name]


def phases(text: str) -> list[tuple]:
    return [(phase.until, phase.attention, phase.granularity, phase.window) for phase in Schedule.parse(text).phases]


def test_there_are_such_workflows():
    assert len(NAMES) == 5


@pytest.mark.parametrize("name", NAMES)
def test_edits_are_in_the_text(edited, name):
    """A window by keyboard, an end by mouse; a preset becomes text with the first edit. No more changes than that."""
    shown, text = edited["opened"]
    first, second = phases(PRESETS.get(shown, text))
    preset, text = edited["keyboard"]
    assert preset == "custom" and phases(text) == [first, (*second[:3], (None, "60%", "45%"))]
    preset, text = edited["mouse"]
    (until, *rest), last = phases(text)
    assert preset == "custom" and (*rest,) == first[1:] and last == (*second[:3], (None, "60%", "45%"))
    assert 0.2 < until < first[0]


@pytest.mark.parametrize("name", NAMES)
def test_edits_are_saved_and_reloaded(edited, name):
    assert edited["saved"] == edited["reloaded"] == edited["mouse"]
    (until, *_), _ = phases(edited["mouse"][1])
    assert float(edited["shown"][0]) == until and edited["shown"][1] == "45%"


@pytest.mark.parametrize("name", NAMES)
def test_edits_are_sent_and_run(edited, name):
    """The prompt is the API twin with the edited text, and it runs to the video."""
    preset, text = edited["mouse"]
    twin, key = api_of(name), str(schedule_node(name))
    twin[key]["inputs"] = {"preset": preset, "schedule": text}
    sent = {
        number: {key: value for key, value in node["inputs"].items() if not key.startswith("preview")}
        for number, node in edited["sent"].items()
    }
    assert sent == {number: node["inputs"] for number, node in twin.items()}
    assert edited["got"] == twin[key]["inputs"]
    assert edited["status"]["status_str"] == "success", edited["status"]["messages"][-1]
    reports = [edited["outputs"][number]["text"][0] for number, node in twin.items() if "Report" in node["class_type"]]
    assert reports and all("schedule from the schedule input" in report for report in reports)


@pytest.mark.parametrize("name", NAMES)
def test_no_error_of_ours(edited, name):
    assert edited["errors"] == []
