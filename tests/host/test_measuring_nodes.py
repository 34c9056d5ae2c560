"""Preview, Benchmark and Check in a running server, and the route to the measured times."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from fpsattention.kernels.calibration import Calibration
from fpsattention.kernels.calibration_file import ENVIRONMENT
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.comfy_host import ComfyHost, ComfyHostError, PromptRejectedError
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent
PACK = HERE.parent.parent
NODES = ("FPSAttentionPreview", "FPSAttentionBenchmark", "FPSAttentionCheck")
SIZE = {"width": 128, "height": 96, "frames": 9}
TEXT = "0.90 dense\n0.00 fp8 x1 all 60% 60%"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The calibration file of this module's server."""
    return tmp_path_factory.mktemp("calibration") / "deep" / "calibration.json"


@pytest.fixture(scope="module")
def server(checkout, tmp_path_factory, measured, tiny):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, str(measured))
        patch.setenv("OMP_NUM_THREADS", "1")
        base = tmp_path_factory.mktemp("host")
        with ComfyHost(checkout, base, PACK, extra_packs=[HERE / "testpack"]) as host:
            folder = base / "models" / "diffusion_models"
            folder.mkdir(parents=True, exist_ok=True)
            header = Header(Schedule.parse(TEXT), slots=64, tile=(3, 5, 4), trainer="fpsattention 0.1.0", step=120)
            tiny.write_tiny_wan(folder / "tiny.safetensors", metadata=header.to_metadata())
            tiny.write_tiny_wan(folder / "plain.safetensors")
            yield host


def node(name: str, **inputs) -> dict:
    return {"class_type": f"FPSAttention{name}", "inputs": inputs}


def loader(name: str = "tiny.safetensors") -> dict:
    return {"class_type": "UNETLoader", "inputs": {"unet_name": name, "weight_dtype": "default"}}


def schedule(text: str = TEXT) -> dict:
    return node("Schedule", preset="custom", schedule=text)


def preview(**changes) -> dict:
    return node("Preview", **({"schedule": ["1", 0], "steps": 4, "shift": 5.0} | SIZE | changes))


def benchmark(**changes) -> dict:
    return node("Benchmark", **({"heads": 2, "backend": "auto", "seconds": 10.0} | SIZE | changes))


def outputs(server, graph: dict, key: str = "9") -> tuple[str, Image.Image | None]:
    """The text and the picture that node ``key`` shows."""
    entry = server.prompt(graph)
    shown = entry["outputs"][key]
    pictures = shown.get("images", [])
    if not pictures:
        return shown["text"][0], None
    query = "&".join(f"{name}={pictures[0][name]}" for name in ("filename", "subfolder", "type"))
    with urllib.request.urlopen(f"{server.url}/view?{query}", timeout=20) as answer:
        return shown["text"][0], Image.open(answer).convert("RGB")


def sentence_of(refused: PromptRejectedError) -> str:
    (sentence,) = {
        e["details"].split(" - ", 1)[-1] for n in refused.details["node_errors"].values() for e in n["errors"]
    }
    return sentence


def test_the_nodes_are_registered_and_explained(server):
    for name in NODES:
        info = server.get(f"/object_info/{name}")[name]
        assert info["category"].startswith("model/patch/FPSAttention") and info["output_node"]
        assert info["description"] and info["search_aliases"] and all(len(t) > 15 for t in info["output_tooltips"])
        for inputs in (info["input"].get("required", {}), info["input"].get("optional", {})):
            for key, (_, options) in inputs.items():
                assert len(options.get("tooltip", "")) > 20, f"{name}.{key} has no tooltip"


def test_widgets_are_in_their_order(server):
    """An order is an API: a saved workflow holds values by place."""
    expected = {
        "FPSAttentionPreview": (["schedule", "width", "height", "frames", "steps", "shift"], [], ["IMAGE", "STRING"]),
        "FPSAttentionBenchmark": (
            ["width", "height", "frames", "heads", "backend", "seconds"], ["again"], ["IMAGE", "STRING"],
        ),
        "FPSAttentionCheck": ([], [], ["STRING"]),
    }  # fmt: skip
    for name, (required, more, given) in expected.items():
        info = server.get(f"/object_info/{name}")[name]
        assert info["input_order"].get("required", []) == required
        assert info["input_order"].get("optional", []) == ["model", *more]
        assert info["output"] == given
    (kinds, options) = server.get("/object_info/FPSAttentionPreview")["FPSAttentionPreview"]["input"]["required"][
        "schedule"
    ]
    assert set(kinds.split(",")) == {"FPS_SCHEDULE", "STRING"} and "default" not in options


def test_no_time_is_known_at_first(server):
    answer = server.get("/fpsattention/calibration")
    runs = {"fp8": "reference", "bf16": "reference"}
    assert answer == {"card": answer["card"], "backends": runs, "version": 1, "entries": [], "problem": None}
    assert answer["card"].startswith("CPU ")


def test_preview_shows_text_and_picture(server):
    text, picture = outputs(server, {"1": schedule(), "9": preview()})
    assert "128 x 96, 9 frames: grid 3x6x8 = 144 tokens; shift 5" in text
    assert "4 steps: 2 dense, 2 sparse" in text and "FPSAttention Benchmark once" in text
    assert picture.width > 1000 and len(picture.getcolors(10**6)) > 20
    by_text, _ = outputs(server, {"1": schedule(), "9": preview(schedule=["1", 1])})
    assert by_text == text


def test_preview_of_a_model_takes_its_tile_and_shift(server):
    graph = {
        "1": schedule(), "2": loader(),
        "3": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["2", 0], "shift": 3.0}},
        "9": preview(model=["3", 0], shift=8.0, width=832, height=480, frames=81),
    }  # fmt: skip
    text, _ = outputs(server, graph)
    assert (
        "taken from the model: 3 layers and 2 heads, tokens of 16 x 16 pixels, the trained tile 3x5x4, shift 3" in text
    )
    assert "32,760 tokens; shift 3" in text and "tiles of 3x5x4 tokens" in text


def test_preview_of_the_5b_counts_its_larger_tokens(server, tiny):
    state = tiny.tiny_wan(layers=1)
    dim = state["patch_embedding.bias"].shape[0]
    state["patch_embedding.weight"] = torch.randn(dim, 48, 1, 2, 2) / 14
    state["head.head.weight"], state["head.head.bias"] = torch.randn(4 * 48, dim) / 16, torch.zeros(4 * 48)
    save_file(state, server.base / "models" / "diffusion_models" / "5b.safetensors")
    video = {"width": 1280, "height": 704, "frames": 121}
    text, _ = outputs(server, {"1": schedule(), "2": loader("5b.safetensors"), "9": preview(model=["2", 0], **video)})
    assert "tokens of 32 x 32 pixels" in text and "grid 31x22x40 = 27,280 tokens" in text


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"width": -16}, "width is -16"),
        ({"frames": 0}, "frames is 0"),
        ({"steps": 100000}, "from 1 to 1000"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"shift": -1.0}, "shift is -1.0"),
        ({"width": 16384, "height": 16384}, "at most 2000000 are planned"),
        ({"schedule": "0.5 nonsense"}, "'nonsense' is no attention"),
    ],
    ids=str,
)
def test_what_preview_refuses(server, changes, words):
    with pytest.raises(PromptRejectedError) as refused:
        server.prompt({"1": schedule(), "9": preview(**changes)})
    assert words in sentence_of(refused.value)


def test_a_linked_size_that_cannot_be_is_a_sentence(server):
    graph = {
        "1": schedule(),
        "2": {"class_type": "PrimitiveInt", "inputs": {"value": -5}},
        "9": preview(width=["2", 0]),
    }
    with pytest.raises(ComfyHostError, match="width is -5, it must be from 1"):
        server.prompt(graph)


def test_benchmark_measures_and_keeps(server, measured):
    text, picture = outputs(server, {"9": benchmark()})
    assert "grid 3x6x8 = 144 tokens, 2 heads of 128" in text and "FPSAttention: reference" in text
    assert "dense: attention_" in text and "x\n" in text and "Kept in" in text
    assert picture.width > 1000
    (entry,) = Calibration.load(measured).entries
    assert (entry["tokens"], entry["heads"], entry["backend"], entry["head_dim"]) == (144, 2, "reference", 128)
    assert entry["dense_backend"].startswith("attention_") and entry["points"][-1][0] == 1.0
    answer = server.get("/fpsattention/calibration")
    assert answer["entries"] == [entry] and answer["card"] == entry["card"] and answer["problem"] is None


def was_cached(entry: dict, key: str = "9") -> bool:
    """Whether the host showed the earlier result of node ``key``."""
    (nodes,) = [data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached"]
    return key in nodes


def test_benchmark_measures_once_and_when_it_should_again(server, measured):
    """Beside a sampler it must not take its seconds at every run; what is lost, or asked for again, is measured."""
    graph = {"9": benchmark(seconds=1.0)}
    server.prompt(graph)
    before = measured.read_bytes()
    assert was_cached(server.prompt(graph)) and measured.read_bytes() == before
    assert not was_cached(server.prompt({"9": benchmark(seconds=1.0, again=1)}))
    assert len(Calibration.load(measured).entries) == 1, "the new times take the old ones' place"
    graph = {"9": benchmark(seconds=1.0, again=1)}
    assert was_cached(server.prompt(graph))
    for loss in (measured.unlink, lambda: measured.write_text("{")):
        loss()
        assert not was_cached(server.prompt(graph)) and len(Calibration.load(measured).entries) == 1
        assert was_cached(server.prompt(graph))


def test_preview_tells_seconds_once_measured(server):
    outputs(server, {"9": benchmark(seconds=9)})
    text, _ = outputs(server, {"1": schedule(), "9": preview()})
    assert "Expected self-attention of Wan 1.3B (30 layers, 12 heads)" in text and "scaled" in text
    assert " on reference with 144 tokens and 2 heads" in text
    text, _ = outputs(server, {"1": schedule(), "2": loader(), "9": preview(model=["2", 0])})
    assert "Expected self-attention of this model (3 layers, 2 heads)" in text


def test_benchmark_of_a_model_takes_its_shape(server):
    text, _ = outputs(server, {"2": loader(), "9": benchmark(model=["2", 0], heads=40, width=128, height=160)})
    assert "2 heads of 128, batch 1, float32" in text and "tiles of 3x5x4" in text


def test_benchmark_of_a_large_size_keeps_its_limit(server, measured):
    before = Calibration.load(measured).entries
    started = time.monotonic()
    text, _ = outputs(server, {"9": benchmark(heads=12, width=832, height=480, frames=81, seconds=3)})
    assert "measured 1 of 12 heads and a grid of" in text and time.monotonic() - started < 60
    kept = Calibration.load(measured).entries
    if "Nothing was kept" in text:  # a busy machine came to single calls only
        assert kept == before
    else:
        entry = kept[-1]
        assert entry["heads"] == 1 and entry["tokens"] < 32760


def test_a_backend_that_cannot_run_is_a_sentence(server, measured):
    before = measured.read_bytes()
    text, picture = outputs(server, {"9": benchmark(backend="triton-fp8")})
    assert "ours was not measured" in text and "Triton kernels need a CUDA device" in text
    assert "dense: attention_" in text and "Nothing was kept" in text and picture is not None
    assert measured.read_bytes() == before


def test_cancel_ends_a_long_measurement(server, measured):
    before = measured.read_bytes()
    long = benchmark(width=832, height=480, seconds=120.0)
    started = time.monotonic()

    def cancel(passed: float) -> None:
        if passed > 2:
            server.post("/interrupt", {})

    with pytest.raises(ComfyHostError, match="The prompt ended as 'error'"):
        server.prompt({"9": long}, on_wait=cancel)
    assert time.monotonic() - started < 60 and measured.read_bytes() == before
    outputs(server, {"9": benchmark(seconds=7)})


@pytest.mark.parametrize(
    "changes, words",
    [({"heads": 0}, "heads is 0"), ({"seconds": float("nan")}, "seconds is nan"), ({"height": -8}, "height is -8")],
    ids=str,
)
def test_what_benchmark_refuses(server, changes, words):
    with pytest.raises(PromptRejectedError) as refused:
        server.prompt({"9": benchmark(**changes)})
    assert words in sentence_of(refused.value)


def test_check_tells_everything(server, measured):
    text, _ = outputs(server, {"9": node("Check")})
    for words in ("fpsattention 0.1.0", "ComfyUI", "frontend", "Python", "torch", "Triton", "attention_", "triton-fp8",
                  "reference    can run", "calibration", "measurements", "What to do", "1. "):  # fmt: skip
        assert words in text, words
    told = text.replace(str(measured), "")
    assert str(Path.home()) not in told and str(PACK) not in told and str(server.base) not in told


def test_check_looks_at_a_model(server):
    patched = node("Apply", model=["2", 0], backend="auto", schedule=TEXT)
    text, _ = outputs(server, {"2": loader(), "3": patched, "9": node("Check", model=["3", 0])})
    assert "WAN21, WanModel" in text and "3 layers, 2 heads of 128" in text
    assert "trained by fpsattention 0.1.0, 120 steps, 64 slots per tile, tile 3x5x4" in text
    assert "yes, schedule from the schedule input" in text and "none of other nodes" in text
    text, _ = outputs(server, {"2": loader("plain.safetensors"), "9": node("Check", model=["2", 0])})
    assert "carries no FPSAttention schedule" in text and "is not patched" in text and "preset mild" in text


def test_a_calibration_of_another_version_is_told_and_left(server, measured):
    before = measured.read_bytes()
    try:
        measured.write_text(json.dumps({"version": 7, "entries": []}))
        assert "update the node pack" in server.get("/fpsattention/calibration")["problem"]
        text, _ = outputs(server, {"9": benchmark(seconds=8)})
        assert "The times were not kept" in text and "update the node pack" in text
        assert json.loads(measured.read_text()) == {"version": 7, "entries": []}
        measured.write_text("{")
        assert "set aside" in server.get("/fpsattention/calibration")["problem"]
    finally:
        measured.write_bytes(before)
    assert server.get("/fpsattention/calibration")["problem"] is None


def test_nothing_is_logged_as_a_traceback(server):
    assert "(IMPORT FAILED)" not in server.log()
    parts = [part for part in server.log().split("Traceback")[1:] if f"{PACK.name}/nodes/" in part]
    assert [part for part in parts if "width is -5" not in part and "InterruptProcessing" not in part] == []
