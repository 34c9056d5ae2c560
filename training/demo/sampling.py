"""Sampling the demo's videos: by the shipped workflow where a ComfyUI is found, else through diffusers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..comfy_host import ComfyHost, ComfyHostError, find_checkout
from ..config import RunConfig
from ..data.errors import DataError
from ..data.video import read_clip
from ..export import export
from ..failures import sentence
from ..files import file_sha256
from ..sample import sample, to_frames, write_video
from ..sparse import DENSE
from ..vae import decode, load_vae
from .rows import Row, Trained

PACK = Path(__file__).resolve().parent.parent.parent
WORKFLOW = PACK / "workflows" / "api" / "wan2.1_t2v_1.3b_fpsattention.json"
TEST_PACK = PACK / "tests" / "host" / "testpack"
FPS = 16
CHECKPOINT = "wan2.1-tiny-fpsattention.safetensors"
NO_HOST = "no ComfyUI was found (COMFYUI_PATH is not set, and the pack is not in custom_nodes)"
SAMPLED = ("base", "A", "D", "B", "C")
# The text encoder of Wan has no small version, so the demo conditions on zeros, as the tiny base was trained.
TEXT_NODES = ("CLIPLoader", "CLIPTextEncode")


@dataclass(frozen=True)
class Request:
    """What is sampled: the video's size and the sampler's settings, equal for every row."""

    frames: int
    height: int
    width: int
    seeds: tuple[int, ...] = (1, 2)
    steps: int = 20
    shift: float = 3.0


def export_models(config: RunConfig, trained: Trained, grid, out: Path) -> dict[str, Path]:
    """Write one ComfyUI file per sampled row and return their paths by row key.

    A row that runs sparse has the schedule in its file's header, a dense one is an ordinary Wan file. The jointly
    trained file is the checkpoint; the others, which only serve the comparison, lie in ``comfyui/``.
    """
    sparse, base = config.attention.resolved(), file_sha256(config.model.path)
    plan = {"base": ("base", DENSE), "A": ("base", sparse), "D": ("dense", DENSE), "B": ("dense", sparse)}
    files = {}
    for key, (weights, attention) in (plan | {"C": ("joint", sparse)}).items():
        path = out / CHECKPOINT if key == "C" else out / "comfyui" / f"{key}.safetensors"
        step = 0 if weights == "base" else config.optim.steps
        export(trained.models[weights], path, attention=attention, grid=grid, base_sha256=base, step=step)
        files[key] = path
    return files


def sample_videos(
    config: RunConfig,
    trained: Trained,
    rows: dict[str, Row],
    files: dict[str, Path],
    request: Request,
    out: Path,
    sampler: str,
    checkout: Path | None,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[dict[str, list[torch.Tensor]], str]:
    """Write the mp4 files and return frames (uint8 ``(T, H, W, 3)`` per seed) by row, and how they were sampled.

    ``sampler`` is 'auto', 'comfyui' or 'diffusers', ``checkout`` what ``find_host`` found for it. If ComfyUI fails, or
    its video cannot be read or copied, 'auto' goes on with diffusers and says why; 'comfyui' raises the
    ComfyHostError, DataError or OSError.
    """
    why = NO_HOST if sampler != "diffusers" else "it was asked for"
    if checkout is not None:
        say(f"sampling through ComfyUI at {checkout}")
        try:
            return _through_comfyui(checkout, config, files, request, out, device, say)
        except (ComfyHostError, DataError, OSError) as error:
            if sampler == "comfyui":
                raise
            why = f"ComfyUI failed: {sentence(error).splitlines()[0]}"
    say(f"sampling through diffusers with the same attention engine: {why}")
    videos = {}
    vae = load_vae(config.vae.path)
    shape = (16, (request.frames - 1) // 4 + 1, request.height // 8, request.width // 8)
    text = torch.zeros(8, 4096)
    for key in SAMPLED:
        row = rows[key]
        latents, _ = sample(
            trained.models[row.weights],
            shape=shape,
            seeds=request.seeds,
            text=text,
            steps=request.steps,
            shift=request.shift,
            attention=row.attention,
            progress=row.title,
        )
        videos[key] = [to_frames(video) for video in decode(vae, latents)]
        for seed, frames in zip(request.seeds, videos[key]):
            write_video(out / f"{key}_seed{seed}.mp4", frames, FPS)
    return videos, f"{_settings(request)}, through diffusers with the same attention engine ({why})"


def find_host(sampler: str) -> Path | None:
    """Return the ComfyUI checkout that ``sampler`` will use, or None for diffusers.

    Raises ComfyHostError where ComfyUI was asked for by name and there is none, or COMFYUI_PATH is wrong.
    """
    checkout = None if sampler == "diffusers" else find_checkout(_as_called() / "training")
    if checkout is None and sampler == "comfyui":
        raise ComfyHostError(f"{NO_HOST}; set COMFYUI_PATH to a checkout, or use --sampler diffusers.")
    return checkout


def _as_called() -> Path:
    """Return the pack's folder by the name that it was entered through: a link in custom_nodes leads to its host."""
    entered = Path(os.environ.get("PWD", ""))
    return entered if entered.is_absolute() and entered.is_dir() and entered.samefile(PACK) else PACK


def _through_comfyui(
    checkout: Path, config: RunConfig, files: dict[str, Path], request: Request, out: Path, device, say
) -> tuple[dict[str, list[torch.Tensor]], str]:
    base = out / "comfyui" / "host"
    videos: dict[str, list[torch.Tensor]] = {}
    with ComfyHost(checkout, base, PACK, extra_packs=[TEST_PACK], cpu=device.type == "cpu") as host:
        vae = host.add_model(Path(config.vae.path), "vae")
        names = {key: host.add_model(path, name=f"demo_{key}.safetensors") for key, path in files.items()}
        for key in SAMPLED:
            for seed in request.seeds:
                graph = demo_graph(json.loads(WORKFLOW.read_text(encoding="utf-8")), names[key], vae, request, seed)
                entry = host.prompt(graph)
                video = next((path for path in host.files(entry) if path.suffix == ".mp4"), None)
                if video is None:
                    raise ComfyHostError(f"the workflow {WORKFLOW.name} ran, but ComfyUI names no mp4 that it saved.")
                shutil.copyfile(video, out / f"{key}_seed{seed}.mp4")
                videos.setdefault(key, []).append(torch.from_numpy(read_clip(video).frames[0]))
                say(f"  {key}, seed {seed}")
            if key == "C":
                _save_report(entry, out / "report.txt")
    return videos, (
        f"{_settings(request)}, through ComfyUI with the shipped workflow {WORKFLOW.name}; its loader names, size and "
        "sampler settings are set, and its text-encoder branch is replaced by a test node that gives zeros"
    )


def demo_graph(graph: dict, model: str, vae: str, request: Request, seed: int) -> dict:
    """Return the shipped API workflow with loader names, size and sampler settings set, and no text encoder."""
    values = {
        "FPSAttentionLoadWan": {"model_name": model},
        "VAELoader": {"vae_name": vae},
        "EmptyHunyuanLatentVideo": {
            "width": request.width, "height": request.height, "length": request.frames, "batch_size": 1,
        },
        "ModelSamplingSD3": {"shift": request.shift},
        "KSampler": {"seed": seed, "steps": request.steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"},
        "CreateVideo": {"fps": FPS},
    }  # fmt: skip
    edited = {}
    for name, node in graph.items():
        kind = node["class_type"]
        if kind == "CLIPTextEncode":
            edited[name] = {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 0, "tokens": 16}}
        elif kind not in TEXT_NODES:
            edited[name] = {**node, "inputs": {**node["inputs"], **values.get(kind, {})}}
    return edited


def _save_report(entry: dict, path: Path) -> None:
    for output in entry.get("outputs", {}).values():
        text = output.get("text")
        if text:
            path.write_text("\n".join(text) if isinstance(text, list | tuple) else str(text), encoding="utf-8")


def _settings(request: Request) -> str:
    return (
        f"{request.frames} frames of {request.width} x {request.height}, euler, {request.steps} steps, shift "
        f"{request.shift:g}, cfg 1, seeds {' and '.join(map(str, request.seeds))}"
    )
