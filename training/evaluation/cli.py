"""Sample the same prompts and seeds with several attentions, and compare the videos with the dense ones."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..failures import exit_code

if TYPE_CHECKING:
    import torch

    from .request import Method, Settings

PACK = Path(__file__).resolve().parent.parent.parent
ASSETS = PACK / "training" / "assets"
# What the published models are sampled with, and what suits the tiny model that the pack ships.
PUBLISHED = {"size": "832x480x81", "steps": 50, "cfg": 5.0, "shift": 5.0}
TINY = {"size": "192x128x29", "steps": 20, "cfg": 1.0, "shift": 3.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation and return the exit code: 0 done, 2 bad input (one sentence on stderr)."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    return exit_code(lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> int:
    print(evaluate(args))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    add = parser.add_argument
    add("--model", metavar="[NAME=]FILE", action="append", default=[],
        help="a Wan text-to-video file or folder; more than one: the first, dense, is the reference. "
        "Default: the tiny model that the pack ships")  # fmt: skip
    add("--lora", metavar="[NAME=]FILE", action="append", default=[],
        help="repeatable: a LoRA that the trainer wrote; the first model with it is one more model")  # fmt: skip
    add("--vae", metavar="PATH", help="Wan's VAE (default: the tiny one, with the tiny model)")
    add("--prompts", metavar="FILE|TEXT", nargs="+", default=[], help="prompts, or text files with one per line")
    add("--text-encoder", metavar="FOLDER", default="zeros", help="folder of UMT5 and its tokenizer; 'zeros': no text")
    add("--negative", metavar="TEXT", default="", help="negative prompt, where cfg is not 1")
    add("--attention", metavar="[NAME=]SCHEDULE", action="append", default=[],
        help="repeatable: a preset, 'dense', 'file' (the model file's own), a schedule's file, a head table's file "
        "(with the schedule that it was searched with), or a schedule's text with ';' for line ends")  # fmt: skip
    add("--seeds", metavar="N", nargs="+", default=["0"], help="seeds, or ranges such as 0-4")
    add("--size", metavar="WxHxFRAMES", help="video size (832x480x81; tiny model: 192x128x29)")
    add("--steps", type=int, help="sampling steps (50; tiny model: 20)")
    add("--cfg", type=float, help="guidance scale, 1 for none (5; tiny model: 1)")
    add("--shift", type=float, help="shift of the noise levels (5; tiny model: 3)")
    add("--fps", type=float, default=16.0, help="frames per second of the files")
    add("--slots", type=int, default=64, help="tokens per tile, for files without a schedule of their own")
    add("--backend", default="auto", help="attention backend of the sparse phases")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on a card, else fp32")
    add("--no-vbench", action="store_true", help="leave VBench out, installed or not")
    add("--out", metavar="FOLDER", default="output/evaluation", help="where videos, table and page go")
    return parser


def evaluate(args: argparse.Namespace) -> Path:
    """Do what the arguments say and return the page's path. Raises EvaluationError and the usual errors."""
    from ..distributed import World, pick_device
    from ..files import fingerprint, replace_file
    from ..names import read_shape
    from ..vae import VaeError, load_vae
    from .measure import decoder, measure_all
    from .metrics import Lpips
    from .page import page
    from .request import EvaluationError, make_methods, read_models
    from .sampling import backends_of, sample_all
    from .table import make_rows, write_tables
    from .texts import encode
    from .vbench import Scores, vbench_scores

    settings = _settings(args)
    out = _folder(args.out)
    device = pick_device(args.device, World())
    models = read_models(args.model or [str(ASSETS / "wan2.1-tiny-t2v.safetensors")], args.lora)
    for model in models:
        channels = read_shape(model.path).in_channels
        if channels != 16:
            raise EvaluationError(
                f"{model.path}: is an image-to-video model ({channels} channels); give text-to-video models"
            )
    vae_path = args.vae or (None if args.model else str(ASSETS / "wan2.1-tiny-vae.safetensors"))
    if vae_path is None:
        raise EvaluationError("--vae is missing; name Wan's VAE file, for example models/vae/wan_2.1_vae.safetensors")
    if not Path(vae_path).expanduser().exists():
        raise VaeError(f"--vae {vae_path}: there is no such VAE; give a .safetensors file or a diffusers folder")
    vae = load_vae(Path(vae_path).expanduser())  # what is wrong with it is said before hours of sampling
    methods = make_methods(models, args.attention, slots=args.slots, backend=args.backend)
    settings = _in_dtype(settings, args.dtype, device)
    backends_of(methods, settings, device)
    out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    texts, negative, identity = encode(settings, args.text_encoder, out / "texts", device)
    sampled = sample_all(methods, settings, texts, negative, identity, device, out, say)
    lpips = Lpips(device)
    vae = vae.to(device)
    clips = measure_all(
        methods, sampled, settings, decoder(vae), fingerprint(Path(vae_path).expanduser()), lpips, out, say
    )
    del vae
    scores = Scores({}, "left out") if args.no_vbench else vbench_scores(methods, clips, out, device.type)
    rows = make_rows(methods, clips, scores)
    write_tables(rows, clips, settings, out)
    facts = _facts(settings, methods, sampled, args, lpips.reason, scores.reason)
    target = out / "index.html"
    replace_file(target, page(rows, clips, settings, facts, out).encode("utf-8"))
    return target


def _settings(args: argparse.Namespace) -> Settings:
    from ..data.text import ZEROS
    from .request import EvaluationError, Settings, read_prompts, read_seeds, read_size

    usual = PUBLISHED if args.model else TINY
    chosen = {name: usual[name] if getattr(args, name) is None else getattr(args, name) for name in usual}
    frames, height, width = read_size(chosen["size"])
    for name, low in (("steps", 1), ("slots", 1)):
        value = chosen.get(name, getattr(args, name))
        if value < low:
            raise EvaluationError(f"--{name} is {value}, it must be at least {low}")
    for name, value in (("cfg", chosen["cfg"]), ("shift", chosen["shift"]), ("fps", args.fps)):
        if not 0 < value < 1000:
            raise EvaluationError(f"--{name} is {value:g}, it must lie above 0 and below 1000")
    return Settings(
        prompts=read_prompts(args.prompts, encoder=args.text_encoder != ZEROS),
        seeds=read_seeds(args.seeds),
        frames=frames,
        height=height,
        width=width,
        steps=chosen["steps"],
        shift=chosen["shift"],
        cfg=chosen["cfg"],
        negative=args.negative,
        fps=args.fps,
        dtype=args.dtype,
    )


def _in_dtype(settings: Settings, choice: str, device: torch.device) -> Settings:
    from dataclasses import replace

    from .request import run_dtype

    return replace(settings, dtype=run_dtype(choice, device))


def _folder(text: str) -> Path:
    """Return the output folder; raises EvaluationError where nothing can be written."""
    from .request import EvaluationError

    folder = Path(text).expanduser().absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise EvaluationError(f"--out {text}: {nearest} is a file; name a folder")
    if not os.access(nearest, os.W_OK):
        raise EvaluationError(f"--out {text}: {nearest} cannot be written; name another folder")
    return folder


def _facts(
    settings: Settings,
    methods: Sequence[Method],
    sampled: dict,
    args: argparse.Namespace,
    lpips: str | None,
    vbench: str | None,
) -> dict:
    from ..data.text import ZEROS

    first = sampled[methods[0].key, settings.clips[0][0]].facts
    count = len(settings.clips)
    said = (
        f"{count} video{'s' if count > 1 else ''} per method: {settings.frames} frames of {settings.width} x "
        f"{settings.height}, {settings.steps} Euler steps, shift {settings.shift:g}, cfg {settings.cfg:g}, "
        f"{settings.dtype}, {first['device']}"
    )
    notes = [
        f"PSNR, SSIM and LPIPS compare each video with that of “{methods[0].title}”, same prompt and seed; means over "
        "the videos ± their standard error. Latency: median time of sampling one video, without text and VAE. FLOPs "
        "and density: of one video, all steps.",
    ]
    if args.text_encoder == ZEROS:
        notes.append("No text encoder was given: the models saw no text, prompts are only names here.")
    if lpips:
        notes.append(f"LPIPS: {lpips} (pip install lpips).")
    if vbench and vbench != "left out":
        notes.append(f"VBench: {vbench} (pip install vbench).")
    return {"settings": said, "notes": notes, "lpips": lpips, "vbench": vbench}
