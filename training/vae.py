"""Wan's VAE from a local file: load, save, encode to normalized latents, decode."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..kernels.checkpoint import write_checkpoint
from .failures import VaeError
from .vae_names import name_map, original_name
from .vae_pass import AutoencoderKLWan, decode_whole, encode_whole

LATENT_CHANNELS = 16
_WHOLE_PASS = 8 * 33 * 480 * 832  # base_dim * frames * pixels above which the frame-by-frame loop saves memory
_FIRST_CONV = "encoder.conv1.weight"


def load_vae(path: str | Path, *, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """Return the VAE of a ComfyUI single file or of a diffusers folder, frozen, in eval mode; nothing is downloaded.

    The width is read from the weights, so the tiny VAE (dim 8) and Wan2.1's own (dim 96) both load. Raises ``VaeError``
    for a missing path, a file that is not safetensors, or one that is not a Wan 2.1 VAE.
    """
    path = Path(path)
    if path.is_dir():
        vae = _load_folder(path)
    elif path.is_file():
        vae = _load_single(path)
    else:
        raise VaeError(f"{path}: no such VAE; give a .safetensors file or a diffusers folder.")
    return torch.nn.Module.to(vae, dtype).eval().requires_grad_(False)


def save_vae(
    vae: AutoencoderKLWan, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Write ``vae`` in the original names, which ComfyUI loads, in ``dtype``; the file appears whole or not at all.

    Raises ``kernels.checkpoint.CheckpointError`` when it cannot be written.
    """
    tensors = {original_name(name): value.to(dtype) for name, value in vae.state_dict().items()}
    write_checkpoint(path, tensors, extra_metadata=dict(metadata))


def vae_hash(path: str | Path) -> str:
    """Return the SHA-256 of a VAE's weights file, or of all files of its folder: the identity that caches depend on."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@torch.no_grad()
def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Return normalized latents (B, 16, 1 + (T-1)/4, H/8, W/8) float32 of ``video`` (B, 3, T, H, W) in [-1, 1].

    They are the posterior's mode, less Wan's fixed mean and over its fixed deviation: what the diffusion model sees.
    """
    if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] % 4 != 1 or video.shape[3] % 8 or video.shape[4] % 8:
        raise ValueError(
            f"the VAE takes (B, 3, 4k+1, 8m, 8n), not {tuple(video.shape)}; cut the frames or crop the picture."
        )
    video = video.to(vae.dtype)
    parameters = encode_whole(vae, video) if _is_small(vae, video.shape[2:]) else vae._encode(video)
    mean, std = _statistics(vae, parameters.device)
    return (parameters[:, : vae.config.z_dim].float() - mean) / std


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Return video (B, 3, 4(t-1)+1, 8h, 8w) float32 in [-1, 1] of normalized ``latents`` (B, 16, t, h, w)."""
    if latents.ndim != 5 or latents.shape[1] != vae.config.z_dim:
        raise ValueError(f"latents must be (B, {vae.config.z_dim}, t, h, w), not {tuple(latents.shape)}.")
    mean, std = _statistics(vae, latents.device)
    raw = (latents.float() * std + mean).to(vae.dtype)
    _, _, t, h, w = raw.shape
    if _is_small(vae, (4 * (t - 1) + 1, 8 * h, 8 * w)):
        video = decode_whole(vae, raw)
    else:
        video = vae.decode(raw, return_dict=False)[0]
    return video.float().clamp(-1, 1)


def _statistics(vae: AutoencoderKLWan, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (1, vae.config.z_dim, 1, 1, 1)
    return (
        torch.tensor(vae.config.latents_mean, device=device).view(shape),
        torch.tensor(vae.config.latents_std, device=device).view(shape),
    )


def _is_small(vae: AutoencoderKLWan, extent: tuple[int, ...] | torch.Size) -> bool:
    frames, height, width = extent
    return vae.config.base_dim * frames * height * width <= _WHOLE_PASS


def _load_single(path: Path) -> AutoencoderKLWan:
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise VaeError(f"{path}: not a readable safetensors file ({error}); download or export it again.") from error
    spelled_original = _FIRST_CONV in shapes
    first = shapes.get(_FIRST_CONV) or shapes.get("encoder.conv_in.weight")
    if first is None or len(first) != 5:
        raise VaeError(
            f"{path}: not a Wan VAE (it has no 5-dimensional {_FIRST_CONV}); give Wan2.1's VAE file or the tiny one."
        )
    quant = shapes.get("conv1.weight" if spelled_original else "quant_conv.weight", (0,))
    if first[1] != 3 or quant[0] != 2 * LATENT_CHANNELS:
        raise VaeError(
            f"{path}: a VAE of another kind ({first[1]} input and {quant[0] // 2} latent channels), not Wan 2.1's"
            f" (3 and {LATENT_CHANNELS}); give Wan2.1's VAE file."
        )
    with torch.device("meta"):
        vae = AutoencoderKLWan(base_dim=first[0])
    expected = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    names = name_map(expected) if spelled_original else {name: name for name in expected}
    missing = sorted(set(names) - set(shapes))
    foreign = sorted(set(shapes) - set(names))
    wrong = sorted(name for name in set(names) & set(shapes) if shapes[name] != expected[names[name]])
    for what, which in (("misses", missing), ("has the unknown", foreign), ("has a wrong shape for", wrong)):
        if which:
            more = f" and {len(which) - 1} more" if len(which) > 1 else ""
            raise VaeError(
                f"{path}: not a complete Wan 2.1 VAE: it {what} {which[0]}{more}; download or export it again."
            )
    tensors = load_file(path)
    vae.load_state_dict({names[name]: value for name, value in tensors.items()}, assign=True)
    return vae


def _load_folder(path: Path) -> AutoencoderKLWan:
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VaeError(
            f"{path}: not a diffusers VAE folder (config.json: {error}); give the folder that holds it."
        ) from error
    kind = config.get("_class_name")
    if kind != "AutoencoderKLWan":
        raise VaeError(f"{path}: its config.json names {kind}, not AutoencoderKLWan; give Wan2.1's VAE folder.")
    try:
        return AutoencoderKLWan.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise VaeError(
            f"{path}: the VAE folder does not load ({str(error).splitlines()[0]}); copy it again."
        ) from error
