"""Train a small Wan VAE on one clip, and write it in the original names with unit-variance latents."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .data.video import Clip, cover_size, read_clip
from .tiny_vae_fold import fold_whitening
from .vae import save_vae
from .vae_pass import AutoencoderKLWan, decode_whole, encode_whole

_log = logging.getLogger(__name__)

CREDIT = "Big Buck Bunny, (c) Blender Foundation, CC BY 3.0"
FPS = 16
FRAMES, HEIGHT, WIDTH = 29, 128, 192  # the sample on which the held-out PSNR is stated
SCALES = (1.0, 1.15, 1.35, 1.6, 2.0, 2.5, 3.1)
EVAL_SCALES = (1.0, 1.6)
BASE_DIM = 8


@dataclass(frozen=True)
class FitOptions:
    """What a fit depends on; equal options and an equal clip give an equal file on one torch build."""

    steps: int = 4000
    lr: float = 3e-3
    warmup: int = 100
    holdout: float = 0.375  # the end of the clip, longer than one 29-frame sample at 16 fps
    seed: int = 0
    noise: float = 0.05  # on the latents, so that the decoder takes what a diffusion model makes of them
    latent_penalty: float = 1e-3
    ema: float = 0.995
    bf16: bool = True
    log_every: int = 400


# (share, batch, frames, height, width): many short crops for texture, some long or wide ones for time and attention
_CROPS = (
    (0.50, 1, 9, 64, 64),
    (0.20, 1, 17, 48, 64),
    (0.20, 1, 5, 96, 96),
    (0.10, 4, 1, 64, 64),
)
_SPATIAL_SHARE = 0.06  # of the steps, at the start, on single frames: they are cheap and teach colors and edges


def fit(clip_path: Path, out: Path, options: FitOptions, *, resume: bool = True) -> dict[str, str]:
    """Train, fold, write ``out`` and return its metadata. State is kept beside ``out`` until the fit is complete."""
    clip = read_clip(clip_path, sizes=lambda source: [cover_size(source, HEIGHT, WIDTH, s) for s in SCALES])
    train_end = math.floor(clip.length * (1 - options.holdout))
    pyramid = [torch.from_numpy(frames[:train_end]) for frames in clip.frames]
    held_out = held_out_samples(clip, options.holdout)

    torch.manual_seed(options.seed)
    vae = AutoencoderKLWan(base_dim=BASE_DIM)
    silence_variance(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {name: p.detach().clone() for name, p in vae.named_parameters()}
    state_path = out.with_name(out.name + ".resume")
    step = 0
    if resume and state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]
        _log.info("resumed at step %d", step)

    started, spent = time.monotonic(), 0
    bar = tqdm(total=options.steps, initial=step, desc="tiny VAE", mininterval=5)
    while step < options.steps:
        for group in optimizer.param_groups:
            group["lr"] = _lr(options, step)
        loss = _step(vae, _crops(pyramid, options, step, clip.fps), options, step)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, spent = step + 1, spent + 1
        decay = min(options.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in vae.named_parameters():
                average[name].lerp_(p, 1 - decay)
        bar.update(1)
        if step % options.log_every == 0 or step == options.steps:
            psnr = [held_out_psnr(_averaged(vae, average), samples) for samples in held_out]
            per_step = 1000 * (time.monotonic() - started) / spent
            text = ", ".join(f"{value:.2f}" for value in psnr)
            _log.info("step %d  loss %.4f  held-out PSNR %s dB  %.0f ms/step", step, loss, text, per_step)
            _save_state(
                state_path,
                {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step},
            )
    bar.close()
    metadata = export(_averaged(vae, average), clip, out, options, step)
    state_path.unlink(missing_ok=True)
    return metadata


def export(vae: AutoencoderKLWan, clip: Clip, out: Path, options: FitOptions, step: int) -> dict[str, str]:
    """Fold the training part's latent statistics into ``vae``, measure it as written, and write it to ``out``."""
    windows = _statistics_windows(clip, options.holdout)
    spread = fold_whitening(vae, windows)
    vae.to(torch.bfloat16).float()  # measured as stored
    psnr = [held_out_psnr(vae, samples) for samples in held_out_samples(clip, options.holdout)]
    metadata = {
        "fpsattention.clip": CREDIT,
        "fpsattention.holdout": f"last {options.holdout:.3f} of the clip's time",
        "fpsattention.psnr": f"{psnr[0]:.2f}",
        "fpsattention.psnr_sample": f"{FRAMES} frames x {HEIGHT} x {WIDTH} at {FPS} fps, held out",
        "fpsattention.psnr_zoomed": f"{psnr[1]:.2f} at scale {EVAL_SCALES[1]}",
        "fpsattention.latent_spread": " ".join(f"{value:.3g}" for value in spread),
        "fpsattention.steps": str(step),
        "fpsattention.seed": str(options.seed),
    }
    save_vae(vae, out, metadata, dtype=torch.bfloat16)
    return metadata


def held_out_samples(clip: Clip, holdout: float) -> list[Tensor]:
    """Return, per scale of ``EVAL_SCALES``, held-out samples (n, 3, 29, 128, 192) in [-1, 1] of ``clip``.

    The windows are the first and the last that fit into the held-out part; the crops are left, middle and right.
    """
    begin = math.ceil(clip.length * (1 - holdout))
    span = round((FRAMES - 1) * clip.fps / FPS) + 1
    starts = sorted({begin, clip.length - span})
    if starts[0] < begin or starts[-1] < 0:
        raise ValueError(
            f"the held-out part has {clip.length - begin} frames at {clip.fps:g} fps, too few for {FRAMES} frames at"
            f" {FPS} fps; use a longer clip or a larger holdout."
        )
    batches = []
    for scale in EVAL_SCALES:
        frames = clip.frames[SCALES.index(scale)]
        samples = []
        for start in starts:
            picked = frames[_indices(start, FRAMES, clip.fps / FPS)]
            spare = (picked.shape[1] - HEIGHT, picked.shape[2] - WIDTH)
            for share in (0.0, 0.5, 1.0):
                y, x = round(spare[0] / 2), round(spare[1] * share)
                samples.append(to_video(picked[:, y : y + HEIGHT, x : x + WIDTH]))
        batches.append(torch.stack(samples))
    return batches


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLWan, samples: Tensor) -> float:
    """Return the PSNR in dB of ``vae``'s reconstruction over all of ``samples`` (n, 3, T, H, W) in [-1, 1]."""
    error = 0.0
    for video in samples.split(1):
        mean = encode_whole(vae, video)[:, : vae.config.z_dim]
        error += (decode_whole(vae, mean).clamp(-1, 1) - video).div(2).square().mean().item()
    return -10 * math.log10(error / len(samples))


def to_video(frames: np.ndarray | Tensor) -> Tensor:
    """Return (3, T, H, W) float32 in [-1, 1] from uint8 (T, H, W, 3)."""
    return torch.as_tensor(frames).permute(3, 0, 1, 2).float().div(127.5).sub(1)


def silence_variance(vae: AutoencoderKLWan) -> None:
    """Make the posterior's variance e^-20 everywhere: the latents are deterministic and that half is never trained."""
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = -20.0


def _step(vae: AutoencoderKLWan, video: Tensor, options: FitOptions, step: int) -> float:
    video = video.contiguous(memory_format=torch.channels_last_3d)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
        latents = encode_whole(vae, video)[:, : vae.config.z_dim]
        noise = torch.randn(latents.shape, generator=generator, dtype=torch.float32)
        result = decode_whole(vae, latents + options.noise * noise)
    difference = result.float() - video
    loss = difference.abs().mean() + 4 * difference.square().mean()
    (loss + options.latent_penalty * latents.float().square().mean()).backward()
    return loss.item()


def _crops(pyramid: list[Tensor], options: FitOptions, step: int, fps: float) -> Tensor:
    """Return the training batch of ``step``: random crops, flips, scales and clip rates, the same in every run."""
    rng = np.random.default_rng((options.seed, step))
    if step < _SPATIAL_SHARE * options.steps:
        _, batch, frames, height, width = _CROPS[-1]
    else:
        choice = rng.choice(len(_CROPS), p=[crop[0] for crop in _CROPS])
        _, batch, frames, height, width = _CROPS[choice]
    weights = np.array([1 / scale for scale in SCALES])
    samples = []
    for _ in range(batch):
        level = pyramid[rng.choice(len(pyramid), p=weights / weights.sum())]
        stride = (1.0, fps / FPS)[rng.integers(2)]
        last = math.ceil((frames - 1) * stride) + 1
        start = rng.integers(len(level) - last + 1)
        y, x = rng.integers(level.shape[1] - height + 1), rng.integers(level.shape[2] - width + 1)
        picked = level[_indices(int(start), frames, stride), y : y + height, x : x + width]
        sample = to_video(picked)
        samples.append(sample.flip(-1) if rng.integers(2) else sample)
    return torch.stack(samples)


def _statistics_windows(clip: Clip, holdout: float) -> list[Tensor]:
    """Return whole-height training windows (1, 3, 29, 128, 192) at several times, places and scales."""
    end = math.floor(clip.length * (1 - holdout))
    span = math.ceil((FRAMES - 1) * clip.fps / FPS) + 1
    windows = []
    for start in np.linspace(0, end - span, 4).round().astype(int):
        for scale in EVAL_SCALES:
            frames = clip.frames[SCALES.index(scale)]
            picked = frames[_indices(int(start), FRAMES, clip.fps / FPS)]
            for share in (0.0, 1.0):
                y = round((picked.shape[1] - HEIGHT) * share)
                x = round((picked.shape[2] - WIDTH) * share)
                windows.append(to_video(picked[:, y : y + HEIGHT, x : x + WIDTH])[None])
    return windows


def _indices(start: int, frames: int, stride: float) -> np.ndarray:
    return start + np.floor(np.arange(frames) * stride + 0.5).astype(int)


def _lr(options: FitOptions, step: int) -> float:
    warm = min(1.0, (step + 1) / options.warmup)
    return options.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / options.steps)))


def _averaged(vae: AutoencoderKLWan, average: dict[str, Tensor]) -> AutoencoderKLWan:
    twin = AutoencoderKLWan.from_config(vae.config)
    twin.load_state_dict(average)
    return twin.eval().requires_grad_(False)


def _save_state(path: Path, state: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
