"""The shipped workflows, run to the video: tiny models under the real names, both encoders replaced, small sizes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.presets import preset
from fpsattention.training.comfy_host import ComfyHostError

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NAMES = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))

# What the reports say of where the schedule comes from, per workflow; one report each but for the comparison.
SOURCES = {
    "wan2.1_t2v_1.3b_fpsattention": ["the model file"],
    "wan2.1_t2v_14b_fpsattention": ["the model file"],
    "wan2.1_search_head_patterns_sample": ["the head table"],
    "wan2.1_t2v_msfp_with_timestep_lora": ["the model file"],
    "wan2.1_compare_dense_and_fpsattention": ["the schedule input", "the schedule input"],
}
GRIDS = {
    "wan2.1_i2v_14b_with_fpsattention": "3x6x8 = 144 tokens",
    "wan2.1_vace_with_fpsattention": "4x6x8 = 192 tokens",  # the reference picture is a frame in front
}


@pytest.fixture(scope="module")
def stand_ins():
    spec = importlib.util.spec_from_file_location("stand_ins", HERE / "stand_ins.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_workflow_makes_a_video(server, tiny, stand_ins, name):
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    stand_ins.offer(server.base, graph, tiny, Header(preset("fast")).to_metadata())
    entry = server.prompt(stand_ins.reduced(graph))
    (video,) = [path for path in server.files(entry) if path.suffix == ".mp4"]
    odd = name not in GRIDS
    height, width = (stand_ins.HEIGHT, stand_ins.WIDTH) if odd else (stand_ins.HEIGHT - 8, stand_ins.WIDTH - 8)
    across = 2 * width + 16 if "compare" in name else width
    assert frames_of(video) == (stand_ins.FRAMES, height, across)
    reports = [
        entry["outputs"][key]["text"][0] for key, node in graph.items() if node["class_type"] == "FPSAttentionReport"
    ]
    sources = SOURCES.get(name, ["the schedule input"])
    assert len(reports) == len(sources)
    for text, source in zip(reports, sources):
        assert f"FPSAttention: schedule from {source}" in text
        assert GRIDS.get(name, "3x7x9 = 189 tokens") in text and f"{stand_ins.STEPS} steps" in text
    assert ("timestep-aware LoRA" in reports[0]) == ("timestep_lora" in name)


def test_a_missing_file_is_named(server, stand_ins):
    """Somebody who opens a template before the models are there is told the file's name."""
    name = "wan2.1_t2v_stock_with_fpsattention"
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in graph.values():
        if node["class_type"] == "UNETLoader":
            node["inputs"]["unet_name"] = "not_there.safetensors"
    with pytest.raises(ComfyHostError, match=r"not_there\.safetensors"):
        server.prompt(stand_ins.reduced(graph))


def frames_of(path: Path) -> tuple[int, int, int]:
    """Frames, height and width of a video."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].height, frames[0].width
