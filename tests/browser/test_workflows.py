"""The shipped workflows: as generated, true to the host's schemas, and without an error in the real page."""

from __future__ import annotations

import itertools
import json
import urllib.request
import uuid
from pathlib import Path

import pytest
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.presets import PRESETS
from fpsattention.kernels.schedule import Schedule

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# As the pack's first templates were saved, before Apply had its last widget.
OLD = ROOT / "tests" / "fixtures" / "old_workflows"
OLD_NAMES = sorted(path.stem for path in OLD.glob("*.json"))
HEADER = Header(Schedule.parse("0.83 fp8 x1 all 1 1\n0.00 dense"), tile=(3, 4, 4)).to_metadata()
# Loaders of files that somebody else publishes, and the folder that each looks into.
MODEL_LOADERS = {
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "CLIPVisionLoader": "clip_vision",
    "VAELoader": "vae",
    "LoraLoaderModelOnly": "loras",
}


def ui_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def api_of(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))


def test_committed_files_are_the_generated_ones(generator):
    contents = generator.contents()
    folders = (FOLDER, ROOT / "subgraphs")
    committed = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.json")}
    assert committed == set(contents)
    for name, text in contents.items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: run tests/browser/make_workflows.py"


def test_the_schedule_text_is_the_mild_preset(generator):
    assert Schedule.parse(generator.parts.MILD) == Schedule.parse(PRESETS["mild"])


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
    assert str(uuid.UUID(workflow["id"])) == workflow["id"], "the page refuses to validate any other id"
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, source, output, target, slot, kind in workflow["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == number
        assert {kind, "*"} & set(nodes[target]["inputs"][slot]["type"].split(","))
        assert nodes[source]["outputs"][output]["type"] == kind


@pytest.mark.parametrize("name", NAMES)
def test_every_workflow_explains_itself(name):
    """A note with words, groups with titles, and for every model file of somebody else a place to get it."""
    workflow = ui_of(name)
    (text,) = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert text.startswith("## ") and len(text.split()) > 60
    assert len(workflow["groups"]) >= 4 and all(group["title"] for group in workflow["groups"])
    for node in workflow["nodes"]:
        if node["type"] not in MODEL_LOADERS:
            continue
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0] and model["url"].endswith("/" + model["name"])
        assert model["url"].startswith("https://huggingface.co/") and model["directory"] == MODEL_LOADERS[node["type"]]
        assert model["name"] in text, "the note names every file"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps(name):
    """Nodes with their titles stand apart, inside one group each or beside all, and links lead to the right."""
    workflow = ui_of(name)
    boxes = {node["id"]: box_of(node) for node in workflow["nodes"]}
    for (one, box), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not meet(box, second), f"nodes {one} and {other} overlap"
    groups = [group["bounding"] for group in workflow["groups"]]
    for one, second in itertools.combinations(groups, 2):
        assert not meet(one, second)
    for node in workflow["nodes"]:
        holding = [group for group in groups if meet(boxes[node["id"]], group)]
        assert len(holding) == (0 if node["type"] == "MarkdownNote" else 1)
        assert all(inside(boxes[node["id"]], group) for group in holding)
    for _, source, _, target, _, _ in workflow["links"]:
        assert boxes[source][0] <= boxes[target][0]


def box_of(node: dict) -> list[float]:
    """Left, top, width and height of a node with its title."""
    (left, top), (width, height) = node["pos"], node["size"]
    return [left, top - 30, width, height + 30]


def meet(one: list[float], other: list[float]) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


def inside(inner: list[float], outer: list[float]) -> bool:
    return all(outer[i] <= inner[i] and inner[i] + inner[i + 2] <= outer[i] + outer[i + 2] for i in (0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_workflow_has_a_thumbnail(name):
    image = pytest.importorskip("PIL.Image")
    path = FOLDER / f"{name}.jpg"
    assert path.is_file(), "run tests/browser/make_pictures.py"
    assert path.stat().st_size < 60_000
    with image.open(path) as picture:
        assert picture.format == "JPEG" and picture.size == (640, 360)


@pytest.mark.host
def test_the_host_offers_workflows_and_thumbnails(server):
    """The list that the template browser asks for, and the files that it then takes."""
    offered = server.get("/workflow_templates")
    (pack,) = [p.name for p in server.packs if p.name != "testpack"]
    assert sorted(offered[pack]) == NAMES
    for name in NAMES:
        for ending in ("json", "jpg"):
            url = f"{server.url}/api/workflow_templates/{pack}/{name}.{ending}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.read() == (FOLDER / f"{name}.{ending}").read_bytes()


@pytest.mark.host
def test_schemas_are_the_hosts(server, generator):
    """Inputs, widgets in order and outputs of every node, against what the running host says."""
    for node_type, kind in generator.TYPES.items():
        if node_type == "MarkdownNote":
            continue
        info = server.get(f"/object_info/{node_type}")[node_type]
        assert info["display_name"] in (kind.display, None), "without a name the page makes one of the type"
        declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        linked = {name: slot for name, (slot, *_) in declared.items() if name in dict(kind.inputs)}
        assert linked == dict(kind.inputs), node_type
        assert [name for name in declared if name not in linked] == kind.widgets, node_type
        assert list(zip(info["output_name"], info["output"])) == kind.outputs, node_type
        assert {name: declared[name][0] for name in kind.linkable} == kind.linkable, node_type


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "nodes-2"])
def page(request, server, browse, generator, tiny, stand_ins, tmp_path_factory):
    """Every workflow, opened, and one small graph that is run from the page."""
    for name in NAMES:
        stand_ins.offer(server.base, api_of(name), tiny, HEADER)
        stand_ins.offer_encoders(server.base, api_of(name))
    jobs = [{"name": name, "path": str(FOLDER / f"{name}.json")} for name in NAMES]
    jobs += [{"name": f"old {name}", "path": str(OLD / f"{name}.json")} for name in OLD_NAMES]
    small = tmp_path_factory.mktemp("workflow") / "small.json"
    small.write_text(json.dumps(small_graph(generator)))
    jobs.append({"name": "small", "path": str(small), "run": True})
    return browse(server, jobs, vue_nodes=request.param)


def small_graph(generator) -> dict:
    """The first trained workflow, with a tiny model, without text encoder and video."""
    dropped = ("CLIPLoader", "VAELoader", "VAEDecode", "CreateVideo", "SaveVideo")
    graph = generator.graph("wan2.1_t2v_1.3b_fpsattention")
    graph.nodes = [node for node in graph.nodes if node.type not in dropped]
    values = {"width": 256, "height": 192, "length": 9, "steps": 4}
    for node in graph.nodes:
        if node.type == "CLIPTextEncode":
            node.type, node.links = "FPSTestConditioning", {}
            node.widgets = {"noise_seed": 1, "tokens": 64, "path": ""}
        node.widgets |= {name: value for name, value in values.items() if name in node.widgets}
    generator.TYPES["FPSTestConditioning"] = generator.NodeType(
        "Test Conditioning", [], ["noise_seed", "tokens", "path"], [("CONDITIONING", "CONDITIONING")]
    )
    try:
        return generator.ui_form(graph, "small")
    finally:
        del generator.TYPES["FPSTestConditioning"]


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_opens_in_the_page(page, name):
    result, workflow = page[name], ui_of(name)
    assert result["missing"] == [] and result["errors"] == []
    assert result["dialogs"] == [] and result["complaints"] == []
    assert result["count"] == len(workflow["nodes"])
    saved = {int(node["id"]): node for node in result["saved"]}
    for node in workflow["nodes"]:
        if node["type"] != "PreviewAny":  # some versions of the page keep the text's place there
            assert saved[node["id"]]["widgets_values"] == node["widgets_values"], node["type"]
        assert saved[node["id"]]["properties"].get("cnr_id") == node["properties"].get("cnr_id")


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_the_page_sends_the_api_twin(page, name):
    sent, twin = page[name]["output"], api_of(name)
    assert sent.keys() == twin.keys()
    for key, node in twin.items():
        assert sent[key]["class_type"] == node["class_type"]
        inputs = {name: value for name, value in sent[key]["inputs"].items() if not name.startswith("preview")}
        assert inputs == node["inputs"]
        assert sent[key]["_meta"]["title"] == node["_meta"]["title"]


@pytest.mark.browser
@pytest.mark.parametrize("name", OLD_NAMES)
def test_a_workflow_of_an_older_version_opens(page, name):
    """Nothing is missing, what it says is kept, and widgets that came later have their defaults."""
    result, workflow = page[f"old {name}"], json.loads((OLD / f"{name}.json").read_text(encoding="utf-8"))
    assert result["missing"] == [] and result["errors"] == []
    assert result["dialogs"] == [] and result["complaints"] == []
    assert result["count"] == len(workflow["nodes"])
    saved = {int(node["id"]): node for node in result["saved"]}
    for node in workflow["nodes"]:
        if not node["type"].startswith("FPSAttention"):
            continue
        new = [""] if node["type"] == "FPSAttentionApply" else []
        assert saved[node["id"]]["widgets_values"] == node["widgets_values"] + new, node["type"]
        sent = result["output"][str(node["id"])]["inputs"]
        if new:
            assert sent["backend"] == "auto" and sent["dense_blocks"] == ""


def test_old_workflows_lack_what_came_later():
    """The files are of the version before the last widget, so that opening them shows something."""
    old = [json.loads((OLD / f"{name}.json").read_text(encoding="utf-8")) for name in OLD_NAMES]
    apply = [node["widgets_values"] for graph in old for node in graph["nodes"] if node["type"] == "FPSAttentionApply"]
    assert apply == [["auto"]]


@pytest.mark.browser
def test_runs_from_the_page(page, server):
    assert page["small"]["errors"] == []
    history = page["small"]["history"]
    assert history["status"]["status_str"] == "success"
    (report,) = [output for output in history["outputs"].values() if output.get("images") and output.get("text")]
    assert "schedule from the model file" in report["text"][0]
    assert (server.base / "temp" / report["images"][0]["filename"]).stat().st_size > 2000
