"""Makes the pictures of the help pages from what the nodes really give, on the shipped tiny model.

Run it as ``COMFYUI_PATH=... python tests/host/make_help_pictures.py [FOLDER [NAME ...]]`` with the pack on the path.
When FOLDER is given, the pictures go there, and the texts of the nodes too; with names (benchmark, preview, profile,
report, search) only those.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from fpsattention.training.comfy_host import ComfyHost, find_checkout

ROOT = Path(__file__).resolve().parent.parent.parent
ASSETS = ROOT / "training" / "assets"
TARGET = ROOT / "nodes" / "web" / "docs" / "images"
SCHEDULE = "0.90 fp8 x2 all 40% 40%\n0.45 fp8 x1 all 60% 60%\n0.00 fp8 x2 all 50% 50%"
WIDTH = 900


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(model: str) -> dict:
    """Every node of the pack that draws, in one graph."""
    prompts = {"positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]}
    common = {"seed": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    return {
        "1": node("UNETLoader", unet_name=model, weight_dtype="default"),
        "2": node("ModelSamplingSD3", model=["1", 0], shift=3.0),
        "3": node("FPSTestConditioning", noise_seed=0, tokens=512),
        "4": node("FPSTestConditioning", noise_seed=0, tokens=512),
        "5": node("EmptyHunyuanLatentVideo", width=384, height=256, length=29, batch_size=1),
        "6": node("FPSAttentionApply", model=["2", 0], backend="auto", schedule=SCHEDULE),
        "7": node("KSampler", model=["6", 0], steps=12, denoise=1.0, **prompts, **common),
        "report": node("FPSAttentionReport", latent=["7", 0], model=["6", 0]),
        "balanced": node("FPSAttentionSchedule", preset="balanced", schedule=""),
        "preview": node(
            "FPSAttentionPreview", schedule=["balanced", 0], width=1280, height=720, frames=81, steps=20, shift=5.0
        ),
        "benchmark": node(
            "FPSAttentionBenchmark", width=384, height=256, frames=29, heads=2, backend="auto", seconds=60.0
        ),
        "profile": node(
            "FPSAttentionProfile", model=["2", 0], steps=12, effort="runs", aim="density", density=0.35, psnr=25.0,
            phases=3, **prompts, **common,
        ),
        "search": node(
            "FPSAttentionSearchHeads", model=["2", 0], steps=12, runs=1, candidates="default", rule="budget",
            budget=30.0, name="help", **prompts, **common,
        ),
        "check": node("FPSAttentionCheck", model=["6", 0]),
    }  # fmt: skip


def main() -> int:
    from PIL import Image

    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.mkdir(parents=True, exist_ok=True)
    checkout = find_checkout(ROOT)
    if checkout is None:
        sys.exit("set COMFYUI_PATH to a ComfyUI checkout")
    with tempfile.TemporaryDirectory() as base:
        os.environ["HOME"] = base  # what the benchmark keeps is nobody's
        with ComfyHost(checkout, Path(base), ROOT, extra_packs=[ROOT / "tests" / "host" / "testpack"]) as host:
            nodes = graph(host.add_model(ASSETS / "wan2.1-tiny-t2v.safetensors"))
            wanted = set(sys.argv[2:]) or set(nodes)
            nodes = {key: node for key, node in nodes.items() if key.isdigit() or key == "balanced" or key in wanted}
            # The preview first: what the benchmark measures on a CPU would put absurd seconds into it.
            first = {key: node for key, node in nodes.items() if key in ("balanced", "preview")}
            outputs = host.prompt(first)["outputs"] if "preview" in first else {}
            outputs |= host.prompt({key: node for key, node in nodes.items() if key != "preview"})["outputs"]
            for name, output in outputs.items():
                for text in output.get("text", []) if len(sys.argv) > 1 else []:
                    (target / f"{name}.txt").write_text(text, encoding="utf-8")
                for entry in output.get("images", []):
                    with Image.open(host.base / entry["type"] / entry["subfolder"] / entry["filename"]) as picture:
                        small = picture.convert("RGB")
                        if small.width > WIDTH:
                            height = round(small.height * WIDTH / small.width)
                            small = small.resize((WIDTH, height), Image.Resampling.LANCZOS)
                        small.quantize(256, Image.Quantize.FASTOCTREE).save(target / f"{name}.png", optimize=True)
                        print(target / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
