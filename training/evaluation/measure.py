"""From latents to videos and to numbers: decode, write mp4 files, compare every video with the first method's."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..files import replace_file
from ..sample import to_frames, write_video
from .metrics import Lpips, psnr, ssim
from .request import Method, Settings
from .sampling import Sampled


@dataclass(frozen=True)
class Clip:
    """One video of the evaluation with its measures; psnr is None where the video equals the reference."""

    method: str
    name: str
    prompt: int
    seed: int
    video: Path
    facts: dict[str, Any]
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    reference: bool = False


def measure_all(
    methods: Sequence[Method],
    sampled: dict[tuple[str, str], Sampled],
    settings: Settings,
    decode: Callable[[torch.Tensor], torch.Tensor],
    vae_identity: str,
    lpips: Lpips,
    out: Path,
    say: Callable[[str], None],
) -> list[Clip]:
    """Return every video with its measures, making those that are not in ``out`` already.

    ``decode`` gives frames uint8 (T, H, W, 3) of latents (16, t, h, w).
    """
    first, found = methods[0], []
    for name, prompt, seed in settings.clips:
        reference: torch.Tensor | None = None
        for method in methods:
            one = sampled[method.key, name]
            against = sampled[first.key, name]
            video = out / "videos" / method.key / f"{name}.mp4"
            note = out / "measures" / method.key / f"{name}.json"
            key = hashlib.sha256(
                f"{one.key} {against.key} {vae_identity} {lpips.reason} {settings.fps}".encode()
            ).hexdigest()
            numbers = _kept(note, key) if video.is_file() else None
            if numbers is None:
                frames = decode(one.latents())
                if method is first:
                    reference = frames
                elif reference is None:
                    reference = decode(against.latents())
                write_video(video, frames, settings.fps)
                numbers = {} if method is first else _compare(frames, reference, lpips)
                note.parent.mkdir(parents=True, exist_ok=True)
                replace_file(note, json.dumps({"key": key, "numbers": numbers}).encode())
                say(f"{method.title}, {name}: {_said(numbers)}")
            found.append(Clip(method.key, name, prompt, seed, video, one.facts, **numbers, reference=method is first))
    return found


def _compare(frames: torch.Tensor, reference: torch.Tensor, lpips: Lpips) -> dict[str, float | None]:
    distance = psnr(frames, reference)
    return {
        "psnr": None if math.isinf(distance) else distance,
        "ssim": ssim(frames, reference),
        "lpips": lpips(frames, reference),
    }


def decoder(vae: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what turns latents (16, t, h, w) into frames uint8 (T, H, W, 3) with this VAE."""
    from ..vae import decode

    device = next(vae.parameters()).device
    return lambda latents: to_frames(decode(vae, latents[None].to(device))[0])


def _kept(path: Path, key: str) -> dict[str, float | None] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["numbers"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _said(numbers: dict[str, float | None]) -> str:
    if not numbers:
        return "the reference"
    shown = "equal" if numbers["psnr"] is None else f"PSNR {numbers['psnr']:.2f} dB"
    return f"{shown}, SSIM {numbers['ssim']:.4f}"
