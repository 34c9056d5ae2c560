"""The shipped workflows, run to the video on a tiny model: names set, text encoder replaced, nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.presets import preset

ROOT = Path(__file__).parent.parent.parent
VAE = ROOT / "training" / "assets" / "wan2.1-tiny-vae.safetensors"
NAMES = sorted(path.stem for path in (ROOT / "workflows" / "api").glob("*.json"))


def small(graph: dict, model: str, vae: str) -> dict:
    """The graph with a tiny model and size; the text encoder's branch becomes the test pack's conditioning."""
    values = {
        "FPSAttentionLoadWan": {"model_name": model},
        "UNETLoader": {"unet_name": model},
        "VAELoader": {"vae_name": vae},
        "EmptyHunyuanLatentVideo": {"width": 136, "height": 104, "length": 9},
        "KSampler": {"steps": 3},
    }
    changed = {}
    for key, node in graph.items():
        if node["class_type"] == "CLIPLoader":
            continue
        node = node | {"inputs": node["inputs"] | values.get(node["class_type"], {})}
        if node["class_type"] == "CLIPTextEncode":
            seed = int("Positive" in node["_meta"]["title"])
            node = {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": seed, "tokens": 512}}
        changed[key] = node
    return changed


@pytest.mark.parametrize("name", NAMES)
def test_workflow_makes_a_video(server, tiny, name):
    folder = server.base / "models" / "diffusion_models"
    tiny.write_tiny_wan(folder / "tiny.safetensors", metadata=Header(preset("fast")).to_metadata())
    vae = server.add_model(VAE, "vae")
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    entry = server.prompt(small(graph, "tiny.safetensors", vae))
    (video,) = [path for path in server.files(entry) if path.suffix == ".mp4"]
    assert frames_of(video) == (9, 104, 136)
    text = "\n".join(t for output in entry["outputs"].values() for t in output.get("text", []))
    source = "the schedule input, in place of the model file's" if "stock" in name else "the model file"
    assert f"FPSAttention: schedule from {source}" in text
    assert "3x7x9 = 189 tokens" in text and "3 steps" in text


def frames_of(path: Path) -> tuple[int, int, int]:
    """Frames, height and width of a video."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].height, frames[0].width
