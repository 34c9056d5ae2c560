"""The best linear codec of a clip in Wan's latent layout: principal components of its 4 x 8 x 8 blocks.

It is the teacher of the tiny VAE's first steps: its latents are known before any training, so encoder and decoder each
learn a fixed task instead of waiting for the other.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

TIME, SIDE = 4, 8  # pixels of a latent, along time and along each side


class LinearCodec:
    """Unit-variance principal components of video blocks; the first frame stands for its whole block, as in Wan."""

    def __init__(self, videos: Iterable[Tensor], channels: int, *, sample: int = 30_000, seed: int = 0) -> None:
        blocks = torch.cat([_blocks(video)[0] for video in videos])
        generator = torch.Generator().manual_seed(seed)
        blocks = blocks[torch.randperm(len(blocks), generator=generator)[:sample]].double()
        self.mean = blocks.mean(0)
        variance, axes = torch.linalg.eigh(torch.cov(blocks.T))
        order = variance.argsort(descending=True)[:channels]
        self.map = (axes[:, order] / variance[order].clamp_min(1e-12).sqrt()).float()
        self.mean = self.mean.float()

    def encode(self, videos: Tensor) -> Tensor:
        """Return latents (B, channels, 1 + (T-1)/4, H/8, W/8) of ``videos`` (B, 3, T, H, W)."""
        result = []
        for video in videos:
            blocks, (t, h, w) = _blocks(video)
            result.append(((blocks - self.mean) @ self.map).view(t, h, w, -1).permute(3, 0, 1, 2))
        return torch.stack(result)


def _blocks(video: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the blocks (t*h*w, 3*4*8*8) of one video (3, T, H, W) and (t, h, w); odd borders are cut off."""
    channels, _, height, width = video.shape
    video = torch.cat([video[:, :1].expand(-1, TIME - 1, -1, -1), video], 1)
    t, h, w = video.shape[1] // TIME, height // SIDE, width // SIDE
    video = video[:, : t * TIME, : h * SIDE, : w * SIDE]
    tiles = video.reshape(channels, t, TIME, h, SIDE, w, SIDE).permute(1, 3, 5, 0, 2, 4, 6)
    return tiles.reshape(t * h * w, -1), (t, h, w)
