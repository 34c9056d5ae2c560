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
from .linear_codec import LinearCodec
from .orthogonal import OrthogonalMomentum
from .tiny_vae_fold import fold_whitening
from .vae import LATENT_CHANNELS, save_vae
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

    steps: int = 2600
    lr: float = 4e-2  # of the convolutions; the few other parameters take AdamW's rate below
    lr_rest: float = 3e-3
    warmup: int = 20
    constant: float = 0.35  # share of the steps at the full rate; from there it falls linearly
    taught: float = 0.15  # share of the steps in which the decoder reads the teacher's latents
    anchor: float = 0.02  # weight of the teacher's latents afterwards
    holdout: float = 0.375  # the end of the clip, longer than one 29-frame sample at 16 fps
    seed: int = 0
    noise: float = 0.05  # on the latents, so that the decoder takes what a diffusion model makes of them
    ema: float = 0.99
    bf16: bool = True
    log_every: int = 200


# (share, batch, frames, height, width): many short crops for texture, some long or wide ones for time and attention
_CROPS = (
    (0.64, 1, 9, 64, 64),
    (0.18, 1, 17, 48, 64),
    (0.18, 1, 5, 96, 96),
)


def fit(clip_path: Path, out: Path, options: FitOptions, *, resume: bool = True) -> dict[str, str]:
    """Train, fold, write ``out`` and return its metadata. State is kept beside ``out`` until the fit is complete."""
    clip = read_clip(clip_path, sizes=lambda source: [cover_size(source, HEIGHT, WIDTH, s) for s in SCALES])
    pyramid = [torch.from_numpy(frames[: train_length(clip, options.holdout)]) for frames in clip.frames]
    held_out = [samples[::5] for samples in held_out_samples(clip, options.holdout)]
    teacher = LinearCodec(_whole_windows(pyramid, clip.fps), LATENT_CHANNELS)

    torch.manual_seed(options.seed)
    vae = AutoencoderKLWan(base_dim=BASE_DIM)
    silence_variance(vae)
    optimizers = _optimizers(vae, options)
    average = {name: p.detach().clone() for name, p in vae.named_parameters()}
    state_path = out.with_name(out.name + ".resume")
    step = 0
    if resume and state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        vae.load_state_dict(state["vae"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average, step = state["average"], state["step"]
        _log.info("resumed at step %d", step)

    started, spent = time.monotonic(), 0
    bar = tqdm(total=options.steps, initial=step, desc="tiny VAE", mininterval=5)
    while step < options.steps:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * _rate(options, step)
        loss = _step(vae, teacher, _crops(pyramid, options, step, clip.fps), options, step)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, spent = step + 1, spent + 1
        decay = min(options.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in vae.named_parameters():
                average[name].lerp_(p, 1 - decay)
        bar.update(1)
        if step % options.log_every == 0 or step == options.steps:
            twin = _averaged(vae, average)
            psnr = ", ".join(f"{held_out_psnr(twin, samples, bf16=True):.2f}" for samples in held_out)
            per_step = 1000 * (time.monotonic() - started) / spent
            _log.info("step %d  loss %.4f  held-out PSNR %s dB  %.0f ms/step", step, loss, psnr, per_step)
            saved = [optimizer.state_dict() for optimizer in optimizers]
            _save_state(state_path, {"vae": vae.state_dict(), "optimizers": saved, "average": average, "step": step})
    bar.close()
    metadata = export(_averaged(vae, average), clip, out, options, step)
    state_path.unlink(missing_ok=True)
    return metadata


def export(vae: AutoencoderKLWan, clip: Clip, out: Path, options: FitOptions, step: int) -> dict[str, str]:
    """Fold the training part's latent statistics into ``vae``, measure it as written, and write it to ``out``."""
    windows = _statistics_windows(clip, options.holdout)
    spread = fold_whitening(vae, windows)
    torch.nn.Module.to(vae, torch.bfloat16).float()  # measured as stored
    psnr = [held_out_psnr(vae, samples) for samples in held_out_samples(clip, options.holdout)]
    metadata = {
        "tiny_vae.clip": CREDIT,
        "tiny_vae.holdout": f"last {options.holdout:.3f} of the clip's time",
        "tiny_vae.psnr": f"{psnr[0]:.2f}",
        "tiny_vae.psnr_sample": f"{FRAMES} frames x {HEIGHT} x {WIDTH} at {FPS} fps, held out",
        "tiny_vae.psnr_zoomed": f"{psnr[1]:.2f} at scale {EVAL_SCALES[1]}",
        "tiny_vae.latent_spread": " ".join(f"{value:.3g}" for value in spread),
        "tiny_vae.steps": str(step),
        "tiny_vae.seed": str(options.seed),
    }
    save_vae(vae, out, metadata, dtype=torch.bfloat16)
    return metadata


def held_out_samples(clip: Clip, holdout: float) -> list[Tensor]:
    """Return, per scale of ``EVAL_SCALES``, held-out samples (n, 3, 29, 128, 192) in [-1, 1] of ``clip``.

    The windows are the first and the last that fit into the held-out part; the crops are left, middle and right.
    """
    begin = math.ceil(clip.length * (1 - holdout))
    span = int(_indices(0, FRAMES, clip.fps / FPS)[-1]) + 1
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
def held_out_psnr(vae: AutoencoderKLWan, samples: Tensor, *, bf16: bool = False) -> float:
    """Return the PSNR in dB of ``vae``'s reconstruction over all of ``samples`` (n, 3, T, H, W) in [-1, 1]."""
    error = 0.0
    for video in samples.split(1):
        video = video.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result = decode_whole(vae, encode_whole(vae, video)[:, : vae.config.z_dim])
        error += (result.float().clamp(-1, 1) - video).div(2).square().mean().item()
    return -10 * math.log10(error / len(samples))


def to_video(frames: np.ndarray | Tensor) -> Tensor:
    """Return (3, T, H, W) float32 in [-1, 1] from uint8 (T, H, W, 3)."""
    return torch.as_tensor(frames).permute(3, 0, 1, 2).float().div(127.5).sub(1)


def silence_variance(vae: AutoencoderKLWan) -> None:
    """Make the posterior's variance e^-20 everywhere: the latents are deterministic and that half is never trained."""
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.z_dim :] = 0
        vae.quant_conv.bias[vae.config.z_dim :] = -20.0


def train_length(clip: Clip, holdout: float) -> int:
    """Return how many of ``clip``'s first frames may be trained on."""
    return math.floor(clip.length * (1 - holdout))


def _step(vae: AutoencoderKLWan, teacher: LinearCodec, video: Tensor, options: FitOptions, step: int) -> float:
    video = video.contiguous(memory_format=torch.channels_last_3d)
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    target = teacher.encode(video)
    taught = step < options.taught * options.steps
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
        latents = encode_whole(vae, video)[:, : vae.config.z_dim]
        noise = options.noise * torch.randn(target.shape, generator=generator)
        result = decode_whole(vae, (target if taught else latents) + noise)
    difference = result.float() - video
    loss = difference.abs().mean() + 4 * difference.square().mean()
    distance = (latents.float() - target).square().mean()
    (loss + (1.0 if taught else options.anchor) * distance).backward()
    return loss.item()


def _optimizers(vae: AutoencoderKLWan, options: FitOptions) -> list[torch.optim.Optimizer]:
    """Return the optimizers: orthogonalized momentum for inner convolutions, AdamW for the ends, norms and biases."""
    ends = ("quant_conv", "post_quant_conv", "decoder.conv_out")
    inner = {n: p for n, p in vae.named_parameters() if n.endswith("weight") and not n.startswith(ends)}
    rest = [p for n, p in vae.named_parameters() if n not in inner]
    optimizers: list[torch.optim.Optimizer] = [
        OrthogonalMomentum(inner.values(), lr=options.lr),
        torch.optim.AdamW(rest, lr=options.lr_rest, betas=(0.9, 0.99), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _crops(pyramid: list[Tensor], options: FitOptions, step: int, fps: float) -> Tensor:
    """Return the training batch of ``step``: random crops, flips, scales and clip rates, the same in every run."""
    rng = np.random.default_rng((options.seed, step))
    _, batch, frames, height, width = _CROPS[rng.choice(len(_CROPS), p=[crop[0] for crop in _CROPS])]
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


def _whole_windows(pyramid: list[Tensor], fps: float) -> list[Tensor]:
    """Return one whole-picture window (3, T, H, W) in [-1, 1] per level, at the sample rate."""
    return [
        to_video(level[_indices(0, int((len(level) - 1) * FPS / fps) // 4 * 4 + 1, fps / FPS)]) for level in pyramid
    ]


def _indices(start: int, frames: int, stride: float) -> np.ndarray:
    return start + np.floor(np.arange(frames) * stride + 0.5).astype(int)


def _rate(options: FitOptions, step: int) -> float:
    done = step / options.steps
    return min(1.0, (step + 1) / options.warmup, max(0.01, (1 - done) / (1 - options.constant)))


def _averaged(vae: AutoencoderKLWan, average: dict[str, Tensor]) -> AutoencoderKLWan:
    twin = AutoencoderKLWan.from_config(vae.config)
    twin.load_state_dict(average)
    return twin.eval().requires_grad_(False)


def _save_state(path: Path, state: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
