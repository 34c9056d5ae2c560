"""How far a video is from a reference: PSNR, SSIM, and LPIPS where its package is installed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import conv2d

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, as published
# SSIM of so many pixels at a time: a 720p video's frames would take several gigabytes in float64.
PIXELS = 4 << 20


def psnr(video: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the mean over frames of the peak signal-to-noise ratio in dB, of uint8 (T, H, W, 3); inf if equal."""
    _check(video, reference)
    error = torch.stack([(a.double() - b.double()).square().mean() for a, b in zip(video, reference)])
    if not error.any():
        return math.inf
    # A frame that is equal would make the mean infinite; it counts as half a rounding step in one value.
    floor = 0.25 / video[0].numel()
    return float((10 * torch.log10(255.0**2 / error.clamp(min=floor))).mean())


def ssim(video: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the mean structural similarity of uint8 (T, H, W, 3), over frames, channels and places.

    As published by Wang et al. 2004: Gaussian windows of 11 x 11 with deviation 1.5 that lie wholly inside the frame,
    population covariances, K1 = 0.01, K2 = 0.03, range 255.
    """
    _check(video, reference)
    if min(video.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW} x {WINDOW}, not {tuple(video.shape[1:3])}")
    at_once = max(1, PIXELS // (video.shape[1] * video.shape[2]))
    total = 0.0
    for first in range(0, len(video), at_once):
        part = slice(first, first + at_once)
        total += float(_ssim_map(video[part], reference[part]).flatten(1).mean(1).sum())
    return total / (3 * len(video))


def _ssim_map(video: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    x, y = (v.permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1).double() for v in (video, reference))
    place = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    weight = torch.exp(-(place**2) / (2 * DEVIATION**2))
    weight = weight / weight.sum()

    def mean(z: torch.Tensor) -> torch.Tensor:
        return conv2d(conv2d(z, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


class Lpips:
    """LPIPS (AlexNet) through the package ``lpips``; ``reason`` says why there is none, or is None."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.reason = device, None
        self._model: Callable | None = None
        from ..torchvision_guard import hide_broken_torchvision

        hide_broken_torchvision()
        try:
            import lpips
        except (ImportError, RuntimeError):
            self.reason = "not installed"
            return
        try:
            self._model = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
        except Exception as error:  # it downloads AlexNet: no network has many faces
            self.reason = f"no weights ({next(iter(str(error).splitlines()), type(error).__name__)})"

    @torch.no_grad()
    def __call__(self, video: torch.Tensor, reference: torch.Tensor) -> float | None:
        """Return the mean distance over frames of uint8 (T, H, W, 3), or None without the package."""
        if self._model is None:
            return None
        _check(video, reference)
        total = 0.0
        for a, b in zip(video, reference):
            pair = [(f.permute(2, 0, 1)[None].float() / 127.5 - 1).to(self.device) for f in (a, b)]
            total += float(self._model(*pair).mean())
        return total / len(video)


def _check(video: torch.Tensor, reference: torch.Tensor) -> None:
    if video.shape != reference.shape:
        raise ValueError(f"videos of {tuple(video.shape)} and {tuple(reference.shape)} cannot be compared")
