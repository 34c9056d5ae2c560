"""Head tables and online selectors in the host: files, nodes, results, every variant of Wan, and files as they are not.

The tiny model has 3 layers of 2 heads. Per-head results are compared with PyTorch's own attention under masks.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.grid import TokenGrid, choose_tiling
from fpsattention.kernels.head_table import Band, HeadTable, read_head_table, write_head_table
from fpsattention.kernels.pattern_text import parse_pattern
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.comfy_host import ComfyHostError, PromptRejectedError
from safetensors import safe_open

# A copy of its own, because this test has other schedules.
_SPEC = importlib.util.spec_from_file_location("fps_head_graphs", Path(__file__).parent / "variant_graphs.py")
graphs = importlib.util.module_from_spec(_SPEC)
__import__("sys").modules["fps_head_graphs"] = graphs
_SPEC.loader.exec_module(graphs)

ONLINE = {
    "svg": "0.00 fp8 x1 svg 0.3",
    "sta": "0.00 bf16 - sta",
    "topk": "0.00 fp8 x1 topk 0.2",
    # Without its gate: the tiles of a random model are unlike in themselves, so all would be computed.
    "cdf": "0.00 bf16 - cdf 0.7 -1",
}
graphs.SCHEDULES = {"plain": None, **ONLINE, "heads": "0.00 fp8 x1 heads"}
VAE = Path(__file__).parents[2] / "training" / "assets" / "wan2.1-tiny-vae.safetensors"
LAYERS, HEADS = 3, 2
WORDS = ("window 1 all all", "window all 40% 40%", "first 1 + window 1 1 1", "skip", "full")
GRID, SLOTS, TILE = TokenGrid(3, 6, 8), 16, (1, 4, 4)
CONTROL = "the head table does not know VACE's control blocks"


def table_of(layers: int = LAYERS, heads: int = HEADS, schedule: str = "0.00 fp8 x1 heads", seed: int = 0) -> HeadTable:
    chosen = np.random.default_rng(seed).integers(0, len(WORDS), (1, layers, heads), dtype=np.uint8)
    patterns = tuple(map(parse_pattern, WORDS))
    made = {"lambda": 0.5, "epsilon": 1.0, "note": "made for\na test"}
    return HeadTable(patterns, (Band(0.0, chosen),), GRID, TILE, SLOTS, Schedule.parse(schedule), "tiny", made)


# --- results, inside a process of the host


@pytest.fixture(scope="module")
def results(inside):
    return inside("fps_heads")


@pytest.mark.parametrize(
    "case, calls",
    [
        ("each_head_by_its_pattern", 3), ("bands_at_their_sigmas", 3), ("branches_in_one_call", 3),
        ("branches_in_two_calls", 6), ("two_videos_with_guidance", 3),
    ],
)  # fmt: skip
def test_each_head_equals_attention_under_its_mask(results, case, calls):
    case = results[case]
    assert case["relative"] < 1e-5 < 1e-3 < case["changed"]
    for step in case["run"]["steps"]:
        assert (step["sparse"], step["reasons"]) == (calls, {}) or step["sparse"] + step["dense"] == calls
    assert not any("negative prompt" in note for note in case["run"]["notes"])


def test_tables_that_are_something_else_too(results):
    assert results["all_full_is_dense"] is True
    assert results["one_window_is_that_window"] == {"bf16 -": True, "fp8 x1": True}


def test_the_report_says_the_tables_densities(results):
    case = results["report"]
    rows = [line.split(": ")[1].split() for line in case["text"].splitlines() if line.strip().startswith("layer ")]
    assert np.array(rows, dtype=float) == pytest.approx(np.array(case["exact"]), abs=0.51)
    assert "head table: 3 layers of 2 heads" in case["text"] and "in the 4 steps that used it" in case["text"]
    assert case["image"][1] > 560


def test_another_grid_is_rebuilt_by_rule_and_said_once(results):
    case = results["another_grid"]
    assert case["finite"]
    (note,) = [note for note in case["run"]["notes"] if "rebuilt by rule" in note]
    assert "made for 3x12x16" in note and "this video has 5x10x14" in note


def test_what_cannot_run_is_refused_before_sampling(results):
    case = results["refused"]
    assert "no head table; connect Load Head Patterns" in case["no table"]
    assert "for 3 layers of 2 heads (it was searched on tiny), this model has 2 of 2" in case["layers"]
    assert "'heads' got str, which is no head table; connect Load Head Patterns" in case["no heads"]
    assert any("never says 'heads'" in note for note in results["unused"])


@pytest.mark.parametrize("words", ["svg 0.3", "sta", "topk 0.2", "cdf 0.7"])
def test_online_selectors_say_what_they_chose(results, words):
    case = results["online"][words]
    assert case["finite"] and sorted(case["layers"]) == ["0", "1", "2"]
    assert all(0 < density <= 1 for density in case["layers"].values())
    for step in case["run"]["steps"]:
        assert step["sparse"] == LAYERS and step["reasons"] == {} and 0 < step["density"] <= 1
    assert f"{words} chose density" in case["text"]


# --- files, over HTTP


@pytest.fixture(scope="module")
def ready(server, tiny, inside):
    """The server with tables where a user and where a search put them, and a model file that carries one."""
    write_head_table(server.base / "models" / "fpsattention" / "mine.json", table_of())
    write_head_table(server.base / "output" / "fpsattention" / "found" / "searched.json", table_of(seed=1))
    models = server.base / "models" / "diffusion_models"
    header = Header(Schedule.parse("0.00 fp8 x1 heads"), SLOTS, TILE, heads=table_of())
    tiny.write_tiny_wan(models / "carries.safetensors", metadata=header.to_metadata())
    tiny.write_tiny_wan(models / "stock.safetensors")
    other = Header(header.schedule, SLOTS, TILE, heads=table_of(layers=5))
    tiny.write_tiny_wan(models / "foreign.safetensors", metadata=other.to_metadata())
    inside("fps_models", FPS_FOLDER=str(models))["write"]
    server.add_model(VAE, "vae", "tiny-vae.safetensors")
    return server


def sampled(server, key: str, model: list, **nodes: dict) -> tuple[torch.Tensor, dict, str]:
    """Sample two steps of a small video; return latent, the run, and the report's text."""
    api = nodes | {
        "shift": {"class_type": "ModelSamplingSD3", "inputs": {"model": model, "shift": 8.0}},
        "yes": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 1, "tokens": 512}},
        "no": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 0, "tokens": 512}},
        "empty": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 128, "height": 96, "length": 9, "batch_size": 1},
        },
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["shift", 0], "seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler",
                "scheduler": "simple", "positive": ["yes", 0], "negative": ["no", 0], "latent_image": ["empty", 0],
                "denoise": 1.0,
            },
        },
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": key}},
        "runs": {"class_type": "FPSTestRuns", "inputs": {"latent": ["sampler", 0], "model": ["shift", 0]}},
        "report": {"class_type": "FPSAttentionReport", "inputs": {"latent": ["sampler", 0], "model": ["shift", 0]}},
    }  # fmt: skip
    outputs = server.prompt(api)["outputs"]
    (saved,) = outputs["save"]["latents"]
    with safe_open(server.base / "output" / saved["subfolder"] / saved["filename"], framework="pt") as file:
        latent = file.get_tensor("latent_tensor")
    runs = json.loads(outputs["runs"]["runs"][0])
    return latent, runs[-1] if runs else {}, outputs["report"]["text"][0]


def load_wan(name: str) -> dict:
    return {"class_type": "FPSAttentionLoadWan", "inputs": {"model_name": name, "weight_dtype": "default"}}


def load_heads(name: str) -> dict:
    return {"class_type": "FPSAttentionLoadHeads", "inputs": {"file_name": name}}


def patch(model: str = "file", **inputs: object) -> dict:
    return {"class_type": "FPSAttentionApply", "inputs": {"model": [model, 0], "backend": "auto", **inputs}}


def test_tables_of_both_folders_are_offered(ready):
    info = ready.get("/object_info/FPSAttentionLoadHeads")["FPSAttentionLoadHeads"]
    (name,) = info["input"]["required"].values()
    found = name[1]["options"] if name[0] == "COMBO" else name[0]
    assert set(found) == {"mine.json", os.path.join("found", "searched.json")}
    assert info["output"] == ["FPS_HEADS", "FPS_SCHEDULE", "STRING", "IMAGE"]


def test_a_file_runs_the_table_in_its_header_as_the_node_runs_it(ready):
    """The same table by both ways: the same latent, and the densities that the table has on this grid."""
    carried, run, text = sampled(ready, "carried", ["file", 0], file=load_wan("carries.safetensors"))
    nodes = {
        "file": load_wan("stock.safetensors"),
        "table": load_heads("mine.json"),
        "patch": patch(heads=["table", 0]),
    }
    given, again, _ = sampled(ready, "given", ["patch", 0], **nodes)
    dense = {"file": load_wan("stock.safetensors"), "patch": patch(schedule="0.00 dense")}
    plain, _, _ = sampled(ready, "plain", ["patch", 0], **dense)
    assert torch.equal(carried, given) and not torch.equal(carried, plain)
    exact = table_of().head_densities(choose_tiling(GRID, SLOTS, TILE), 0).mean()
    for step in run["steps"] + again["steps"]:
        assert step["density"] == pytest.approx(exact) and step["sparse"] == LAYERS and step["reasons"] == {}
    assert "head table from the model file" in text and "of 6 heads" in text


def test_a_table_at_the_input_replaces_the_files_and_is_named(ready):
    nodes = {
        "file": load_wan("carries.safetensors"),
        "table": load_heads(os.path.join("found", "searched.json")),
        "patch": patch(heads=["table", 0]),
    }
    _, run, text = sampled(ready, "replaced", ["patch", 0], **nodes)
    exact = table_of(seed=1).head_densities(choose_tiling(GRID, SLOTS, TILE), 0).mean()
    assert run["steps"][0]["density"] == pytest.approx(exact)
    assert "head table from the heads input, in place of the model file's" in text
    assert any("replaces the head table that this model's file carries" in note for note in run["notes"])


def shown(server, name: str) -> str:
    """What the node says of a table; its heads feed a patch, so that it runs."""
    return server.prompt({"table": load_heads(name), "see": preview(["table", 1])})["outputs"]["table"]["text"][0]


def preview(schedule: object, **more: object) -> dict:
    inputs = {"schedule": schedule, "width": 128, "height": 96, "frames": 9, "steps": 4, "shift": 5.0, **more}
    return {"class_type": "FPSAttentionPreview", "inputs": inputs}


def test_what_the_node_says(ready):
    text = shown(ready, "mine.json")
    table = table_of()
    assert "searched on tiny: 3 layers of 2 heads" in text and "grid 3x6x8 = 144 tokens in tiles of 1x4x4" in text
    for words, number in table.counts().items():
        (line,) = [line for line in text.splitlines() if f": {words}" in line and " heads (" in line]
        assert line.startswith(f"{number} of 6 heads ({number / 6:.1%})")
    assert "lambda: 0.5" in text and "epsilon: 1.0" in text and "note: made for\\na test" in text
    assert "0.00    fp8         x1            heads" in text


def test_a_table_that_was_written_again_is_read_again(ready):
    path = ready.base / "output" / "fpsattention" / "again.json"
    write_head_table(path, table_of(seed=2))
    first = shown(ready, "again.json")
    table = table_of(seed=2)
    write_head_table(path, HeadTable(table.patterns, table.bands, GRID, TILE, SLOTS, table.schedule, "another one"))
    assert "searched on tiny" in first and "searched on another one" in shown(ready, "again.json")
    assert read_head_table(path).model == "another one"


def test_preview_with_and_without_the_table(ready):
    """Without a table nothing is known of its density, and a sentence says what to connect."""
    text = ready.prompt({"see": preview("0.00 fp8 x1 heads")})["outputs"]["see"]["text"][0]
    assert "a head table, which is not connected, decides the attention work" in text
    assert "connect the MODEL of FPSAttention (Wan)" in text
    nodes = {
        "file": load_wan("stock.safetensors"), "table": load_heads("mine.json"), "patch": patch(heads=["table", 0]),
        "see": preview(["table", 1], model=["patch", 0]),
    }  # fmt: skip
    text = ready.prompt(nodes)["outputs"]["see"]["text"][0]
    exact = table_of().head_densities(choose_tiling(GRID, SLOTS, TILE), 0).mean()
    assert f"attention work {exact:.1%} of dense" in text


def changed(**changes: object) -> str:
    return json.dumps(json.loads(table_of().to_json()) | changes)


DAMAGED = {
    "cut": (table_of().to_json()[:200], "the JSON is damaged"),
    "other": ('{"a": 1}', "this is no head table"),
    "newer": (changed(version=2), "it is a v2 head table"),
    "unknown": (changed(patterns=["spiral 3"] * 5), "'spiral' is no pattern that this version knows"),
    "shape": (changed(layers=4), "'chosen' is not whole numbers for 1 x 4 x 2"),
    "grid": (changed(grid=[0, 1, 1]), "'grid' is [0, 1, 1]"),
    "unused": (changed(schedule="0 dense"), "never says 'heads'"),
    "bytes": (b"\xff\xfe\x00", "it is not text"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_refused_with_a_sentence(ready, name):
    content, words = DAMAGED[name]
    path = ready.base / "models" / "fpsattention" / f"bad-{name}.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        assert words in refusal(ready, path.name) and path.name in refusal(ready, path.name)
    finally:
        path.unlink()


def refusal(server, name: str) -> str:
    with pytest.raises(PromptRejectedError) as refused:
        shown(server, name)
    details = [e["details"] for node in refused.value.details["node_errors"].values() for e in node["errors"]]
    assert len(details) == 1 and details[0].isprintable() and len(details[0]) < 500
    return details[0]


@pytest.mark.parametrize("name", ["gone.json", "../../../secret.json", "../mine.txt"])
def test_a_file_elsewhere_is_refused(ready, name):
    assert "is neither in models/fpsattention nor in fpsattention of the output folder" in refusal(ready, name)


def test_what_does_not_fit_is_refused_before_sampling(ready):
    with pytest.raises(ComfyHostError, match=r"for 5 layers of 2 heads .*, this model has 3 of 2"):
        sampled(ready, "foreign", ["file", 0], file=load_wan("foreign.safetensors"))
    nodes = {"file": load_wan("stock.safetensors"), "patch": patch(schedule="0.00 fp8 x1 heads")}
    with pytest.raises(ComfyHostError, match="there is no head table; connect Load Head Patterns"):
        sampled(ready, "none", ["patch", 0], **nodes)


# --- every variant of Wan


@pytest.fixture(scope="module")
def told(show_at_end):
    rows: list[str] = []
    yield rows
    show_at_end("heads and selectors on every Wan: densities", "\n".join(rows) + "\n")


@pytest.mark.parametrize("name", graphs.VARIANTS)
def test_every_wan_runs_every_selector(ready, told, name):
    variant = graphs.VARIANTS[name]
    variant.modes = ("one",)
    file = ready.base / "models" / "diffusion_models" / f"{variant.files[0]}.safetensors"
    write_head_table(ready.base / "output" / "fpsattention" / f"{name}.json", table_of(*shape_of(file)))
    api = graphs.graph(name, variant)
    api["table"] = load_heads(f"{name}.json")
    for key, node in api.items():
        if key.startswith("heads") and node["class_type"] == "FPSAttentionApply":
            node["inputs"]["heads"] = ["table", 0]
    outputs = ready.prompt(api)["outputs"]
    densities = {}
    for schedule in (*ONLINE, "heads"):
        (saved,) = outputs[f"one-{schedule}-save"]["latents"]
        with safe_open(ready.base / "output" / saved["subfolder"] / saved["filename"], framework="pt") as latents:
            assert bool(latents.get_tensor("latent_tensor").isfinite().all())
        found = json.loads(outputs[f"one-{schedule}-runs0"]["runs"][0])
        (run,) = [run for run in found if run["node"] == f"one-{schedule}-a"]
        assert run["finished"] and len(run["steps"]) == 2
        for step in run["steps"]:
            check_step(step, variant, schedule)
        densities[schedule] = np.mean([step["density"] for step in run["steps"]])
    told.append(f"{name:14}" + "  ".join(f"{key} {value:6.1%}" for key, value in densities.items()))


def shape_of(path: Path) -> tuple[int, int]:
    """Layers and heads of a tiny checkpoint; heads are 128 wide."""
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        names = [key for key in keys if key.startswith("blocks.") and key.endswith(".self_attn.q.weight")]
        return len(names), file.get_slice(names[0]).get_shape()[0] // 128


def check_step(step: dict, variant: graphs.Variant, schedule: str) -> None:
    calls, evaluations = variant.calls, step["evaluations"]
    sparse, reasons = variant.sparse_calls, {variant.reason} - {None}
    control = calls - 3 if variant.model_class == "VaceWanModel" else 0
    if schedule == "heads" and control and variant.reason is None:
        sparse, reasons = sparse - control, {CONTROL}
    assert (step["sparse"], step["dense"]) == (sparse * evaluations, (calls - sparse) * evaluations)
    assert set(step["reasons"]) == reasons
    # 144 tokens are three tiles by default, of which no window of the selectors svg and sta leaves one out.
    least = schedule in ("svg", "sta") or not sparse
    assert 0 < step["density"] < 1 or (least and step["density"] == 1)
    if schedule != "heads" and sparse:
        main = calls - control
        assert sorted(step["layers"], key=int) == [str(i) for i in range(main)]
        assert all(0 < total / number <= 1 for total, number in step["layers"].values())
