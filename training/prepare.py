"""What happens between a checked configuration and the first step: the backend is asked, the data are cached."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..kernels.attention import resolve_backend
from ..kernels.grid import TokenGrid
from .config import ConfigError, RunConfig
from .data.buckets import buckets_of, latent_shape
from .data.cache import build_cache
from .data.condition import image_identity
from .data.dataset import LatentPart
from .data.settings import DataConfig
from .data.text import TEXT_DIM, ZEROS, read_text, text_files
from .distributed import World, pick_device
from .fits import check_fits, check_quantized
from .names import HEAD_DIM, ModelError, planned_shape
from .weights import open_weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The cached samples, their token grid, and the embedding of no text."""

    train: LatentPart
    val: LatentPart
    grid: TokenGrid
    empty_text: torch.Tensor


def compute_dtype(config: RunConfig) -> torch.dtype:
    """Return the dtype that attention sees."""
    return torch.float32 if config.dtype == "fp32" else torch.bfloat16


def data_grid(config: DataConfig) -> TokenGrid:
    """Return the token grid of the samples that a configuration cuts; of several buckets the one with most tokens."""
    t, h, w = latent_shape(buckets_of(config)[0])
    return TokenGrid(t, h // 2, w // 2)


def check_model(config: RunConfig) -> None:
    """Refuse a model that cannot be trained, or not like this, before anything is prepared.

    Raises ModelError or ConfigError with one sentence.
    """
    shape = planned_shape(config.model)
    if shape.text_dim != TEXT_DIM:
        raise ModelError(
            f"the model takes text embeddings of width {shape.text_dim}, but Wan's have {TEXT_DIM}, the zero one too; "
            + (f"set model.text_dim to {TEXT_DIM}" if config.model.init == "random" else "use another model")
        )
    check_fits(config, shape)
    if config.model.path is not None and open_weights(config.model.path).msfp is not None:
        check_quantized(config)


def check_folders(config: RunConfig) -> None:
    """Refuse folders that cannot be written before any work is done for them; raises ConfigError."""
    folders = {
        "output.dir": config.output.dir,
        "checkpoint.dir": config.checkpoint.dir,
        "data.cache": config.data.cache,
    }
    for key, text in folders.items():
        folder = Path(text).expanduser().absolute()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise ConfigError(f"{key} is {text}, but {nearest} is a file; name a folder")
        if not os.access(nearest, os.W_OK):
            raise ConfigError(f"{key} is {text}, but {nearest} cannot be written; name another folder")


def check_backend(config: RunConfig, world: World) -> None:
    """Ask every sparse phase's backend before anything is loaded, and say what runs in place of what, and where a head
    table was made for other videos.

    Raises BackendError when one cannot run: training never falls back to dense attention.
    """
    device = pick_device(config.device, world)
    attention = config.attention.resolved()
    kinds = {phase.attention for phase in attention.schedule.phases} - {"dense"}
    for kind in sorted(kinds):
        name, note = resolve_backend(attention.backend, device, compute_dtype(config), HEAD_DIM, kind)
        _log.info("%s attention runs on %s (%s)", kind, name, device.type)
        if note and device.type != "cpu":  # on a CPU there is nothing else to expect
            _log.warning("%s", note)
    if note := attention.carried_over(data_grid(config.data)):
        _log.warning("%s", note)


def vae_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the precision that the VAE encodes in: bfloat16 is 3 times faster, where there are instructions for it."""
    choice = config.vae.dtype
    if choice == "auto":
        native = device.type == "cuda" or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        choice = "bf16" if native else "fp32"
    return torch.bfloat16 if choice == "bf16" else torch.float32


def prepare_data(config: RunConfig, world: World, *, progress: bool = True) -> Prepared:
    """Return the cached data; every rank encodes its share of what is missing, and waits for the others.

    Raises DataError or VaeError with one sentence.
    """
    device = pick_device(config.device, world)
    from .vae import VaeError, load_vae, vae_hash  # brings diffusers, which a dry run does without

    if not Path(config.vae.path).exists():
        raise VaeError(f"{config.vae.path}: no such VAE; set vae.path to a .safetensors file or a diffusers folder")
    dtype = vae_dtype(config, device)
    # Latents of the two precisions differ by rounding (0.7 %), so they are cached apart.
    identity = f"{vae_hash(config.vae.path)} {dtype}"
    if config.data.condition != "none":
        image_identity(config.data.image_encoder)  # a missing folder is said before anything is read
    dataset = build_cache(
        config.data,
        lambda: load_vae(config.vae.path, dtype=dtype).to(device),
        identity,
        text_device=device,
        progress=progress and world.is_main,
        rank=world.rank,
        size=world.size,
        barrier=world.barrier,
    )
    empty = None
    if config.data.text_encoder != ZEROS:
        # Cached above: no rank loads the encoder for it.
        empty = text_files(config.data, [""], Path(config.data.cache).expanduser())[""]
    return Prepared(dataset.train, dataset.val, data_grid(config.data), read_text(empty, config.data.text_length))
