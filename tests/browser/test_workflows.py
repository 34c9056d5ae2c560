"""The shipped workflows: as generated, true to the host's schemas, and without an error in the real page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule

FOLDER = Path(__file__).parent.parent.parent / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def ui_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_of(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def test_committed_files_are_the_generated_ones(generator):
    contents = generator.contents()
    committed = {str(p.relative_to(FOLDER).as_posix()) for p in FOLDER.rglob("*.json")}
    assert committed == set(contents)
    for name, text in contents.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name}: run tests/browser/make_workflows.py"


def test_the_stock_workflow_carries_the_mild_preset(generator):
    assert Schedule.parse(generator.MILD) == Schedule.parse(PRESETS["mild"])


@pytest.mark.parametrize("name", NAMES)
def test_the_manager_can_name_what_is_missing(name):
    ours = [node for node in ui_of(name)["nodes"] if node["type"].startswith("FPSAttention")]
    assert ours
    for node in ours:
        properties = node["properties"]
        assert properties["cnr_id"] == "fpsattention" and properties["ver"]
        assert properties["Node name for S&R"] == node["type"]
    api = [node for node in api_of(name).values() if node["class_type"].startswith("FPSAttention")]
    assert all(node["_meta"]["cnr_id"] == "fpsattention" for node in api) and len(api) == len(ours)


@pytest.mark.parametrize("name", NAMES)
def test_links_are_consistent(name):
    workflow = ui_of(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == number
        assert kind in nodes[target]["inputs"][slot]["type"].split(",")
        assert nodes[source]["outputs"][output]["type"] == kind


@pytest.mark.host
def test_schemas_are_the_hosts(server, generator):
    """Inputs, widgets in order and outputs of every node, against what the running host says."""
    for node_type, (display, inputs, widgets, outputs) in generator.TYPES.items():
        if node_type == "MarkdownNote":
            continue
        info = server.get(f"/object_info/{node_type}")[node_type]
        assert info["display_name"] == display
        declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        linked = {name: kind for name, (kind, *_) in declared.items() if name in dict(inputs)}
        assert linked == dict(inputs), node_type
        assert [name for name in declared if name not in linked] == widgets, node_type
        assert list(zip(info["output_name"], info["output"])) == outputs, node_type


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes-2"])
def page(request, server, browse, generator, tiny, tmp_path_factory):
    """Every workflow, opened, and one small graph that is run from the page."""
    for name in NAMES:
        offer_models(server, ui_of(name))
    jobs = [{"name": name, "path": str(FOLDER / f"{name}.json")} for name in NAMES]
    header = Header(Schedule.parse("0.83 fp8 x1 all 1 1\n0.00 dense"), tile=(3, 4, 4))
    model = server.base / "models" / "diffusion_models" / "tiny.safetensors"
    tiny.write_tiny_wan(model, metadata=header.to_metadata())
    small = tmp_path_factory.mktemp("workflow") / "small.json"
    small.write_text(json.dumps(small_graph(generator)))
    jobs.append({"name": "small", "path": str(small), "run": True})
    return browse(server, jobs, vue_nodes=request.param)


def offer_models(server, workflow: dict) -> None:
    """Put an empty file where every loader of the workflow looks, so that the page misses no model."""
    folders = {"CLIPLoader": "text_encoders", "VAELoader": "vae"}
    for node in workflow["nodes"]:
        if node["type"] in ("FPSAttentionLoadWan", "UNETLoader", *folders):
            folder = server.base / "models" / folders.get(node["type"], "diffusion_models")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / node["widgets_values"][0]).touch()


def small_graph(generator) -> dict:
    """The first trained workflow, with a tiny model, without text encoder and video."""
    noise = ("Test Conditioning", [], ["noise_seed", "tokens", "path"], [("CONDITIONING", "CONDITIONING")])
    types = generator.TYPES | {"FPSTestConditioning": noise}
    nodes, _ = generator.WORKFLOWS["wan2.1_t2v_1.3b_fpsattention"]()
    kept = [
        node for node in nodes if node.type not in ("CLIPLoader", "VAELoader", "VAEDecode", "CreateVideo", "SaveVideo")
    ]
    for node in kept:
        if node.type == "CLIPTextEncode":
            node.type, node.links = "FPSTestConditioning", {}
            node.widgets = {"noise_seed": 1, "tokens": 64, "path": ""}
    values = {"model_name": "tiny.safetensors", "width": 256, "height": 192, "length": 9, "steps": 4}
    for node in kept:
        node.widgets |= {name: value for name, value in values.items() if name in node.widgets}
    original, generator.TYPES = generator.TYPES, types
    try:
        return generator.ui_form(kept, [])
    finally:
        generator.TYPES = original


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_opens_in_the_page(page, name):
    result, workflow = page[name], ui_of(name)
    assert result["missing"] == [] and result["errors"] == []
    assert result["dialogs"] == [] and result["complaints"] == []
    assert result["count"] == len(workflow["nodes"])
    saved = {int(node["id"]): node for node in result["saved"]}
    for node in workflow["nodes"]:
        assert saved[node["id"]]["widgets_values"] == node["widgets_values"], node["type"]
        assert saved[node["id"]]["properties"].get("cnr_id") == node["properties"].get("cnr_id")


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_the_page_sends_the_api_twin(page, name):
    sent, twin = page[name]["output"], api_of(name)
    assert sent.keys() == twin.keys()
    for key, node in twin.items():
        assert sent[key]["class_type"] == node["class_type"]
        assert sent[key]["inputs"] == node["inputs"]
        assert sent[key]["_meta"]["title"] == node["_meta"]["title"]


@pytest.mark.browser
def test_runs_from_the_page(page, server):
    assert page["small"]["errors"] == []
    assert page["small"]["history"]["status_str"] == "success"
    outputs = next(iter(server.get("/history").values()))["outputs"]
    (report,) = [output for output in outputs.values() if output.get("images") and output.get("text")]
    assert "schedule from the model file" in report["text"][0]
    assert (server.base / "temp" / report["images"][0]["filename"]).stat().st_size > 2000
