"""What an image-to-video model is given beside the noise: a mask, the latents of the known frames, a picture's feature.

The model's input is 16 noisy channels, 4 of mask and 16 of condition latents. The latents are those of one video that
shows the known frames and mid-gray (0 in [-1, 1]) between. The mask has one channel per pixel frame of a latent frame:
1 where that frame is known. The first latent frame stands for the first pixel frame alone, and has 1 in all four.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import DataError
from .pretrained import load_whole
from .shards import key_of
from .text import folder_identity

_log = logging.getLogger(__name__)

Condition = Literal["none", "first", "first-last"]
ZEROS = "zeros"
MASK_CHANNELS = 4
CONDITION_CHANNELS = 20
IMAGE_DIM = 1280
IMAGE_TOKENS = 257  # a class token and 16 x 16 patches
_SIDE = 224
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def condition_mask(kind: Condition, bucket: tuple[int, int, int]) -> Tensor:
    """Return the mask (4, T, H, W) float32 of a latent of (T, H, W): 1 where a pixel frame is known."""
    mask = torch.zeros(MASK_CHANNELS, *bucket)
    mask[:, 0] = 1
    if kind == "first-last":
        mask[-1, -1] = 1
    return mask


def condition_video(kind: Condition, video: Tensor) -> Tensor:
    """Return the video (3, T, H, W) that shows only the known frames of ``video``."""
    shown = torch.zeros_like(video)
    shown[:, 0] = video[:, 0]
    if kind == "first-last":
        shown[:, -1] = video[:, -1]
    return shown


def known_frames(kind: Condition, video: Tensor) -> Tensor:
    """Return the known frames (1 or 2, 3, H, W) of ``video`` (3, T, H, W)."""
    return torch.stack([video[:, 0], video[:, -1]] if kind == "first-last" else [video[:, 0]])


def image_tokens(kind: Condition) -> int:
    """Return the tokens of the pictures' features: 257 each, first and last one behind the other."""
    return IMAGE_TOKENS * (2 if kind == "first-last" else 1)


def zero_image(kind: Condition) -> Tensor:
    """Return the feature (257 or 514, 1280) that stands for no picture."""
    return torch.zeros(image_tokens(kind), IMAGE_DIM)


def image_identity(folder: str) -> str | None:
    """Return what cached features depend on; None for 'zeros'. Raises DataError for a folder that is not there."""
    if folder == ZEROS:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise DataError(
            f"{path}: no such folder; set data.image_encoder to 'zeros' or to a folder with the CLIP vision model."
        )
    return key_of(encoder=folder_identity(path))


class ImageEncoder:
    """CLIP's vision model as Wan uses it: the last hidden state but one, class token first."""

    def __init__(self, folder: str, device: torch.device | str = "cpu") -> None:
        from ..torchvision_guard import hide_broken_torchvision

        hide_broken_torchvision()
        path = Path(folder).expanduser()
        inner = path / "image_encoder"
        try:
            from transformers import CLIPVisionModel

            where = inner if inner.is_dir() else path
            model = load_whole(CLIPVisionModel, where, torch.float32)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            first = str(error).splitlines()[0].split(". ")[0]  # some go on with all models that there are
            raise DataError(
                f"{path}: the CLIP vision model does not load ({first}); set data.image_encoder to its folder."
            ) from error
        tokens = (model.config.image_size // model.config.patch_size) ** 2 + 1
        if (model.config.hidden_size, tokens, model.config.image_size) != (IMAGE_DIM, IMAGE_TOKENS, _SIDE):
            raise DataError(
                f"{path}: this CLIP vision model gives {tokens} tokens of width {model.config.hidden_size}, Wan takes"
                f" ViT-H's {IMAGE_TOKENS} of {IMAGE_DIM}; set data.image_encoder to that model's folder."
            )
        self.model, self.device = model.to(device).eval(), torch.device(device)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Return the features (257 n, 1280) float32 on the CPU of ``frames`` (n, 3, H, W) in [-1, 1].

        The whole picture is made square, as the original does; ComfyUI does the same with crop = 'none'.
        """
        pixels = frames.to(self.device).float().add(1).div(2)
        if tuple(pixels.shape[2:]) != (_SIDE, _SIDE):
            pixels = F.interpolate(pixels, size=(_SIDE, _SIDE), mode="bicubic", antialias=True)
        pixels = pixels.mul(255).clamp(0, 255).round().div(255)
        mean, std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        states = self.model(pixel_values=(pixels - mean) / std, output_hidden_states=True).hidden_states
        return states[-2].flatten(0, 1).cpu()
