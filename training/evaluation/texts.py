"""Prompts as embeddings, cached; without an encoder the model sees no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.settings import DataConfig
from ..data.text import TEXT_DIM, ZEROS, folder_identity, read_text, text_files
from .request import Settings


def encode(
    settings: Settings, encoder: str, cache: Path, device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor, str]:
    """Return ``encode_prompts`` of an evaluation's prompts."""
    return encode_prompts(settings.prompts, settings.negative, encoder, cache, device)


def encode_prompts(
    prompts: Sequence[str], negative: str, encoder: str, cache: Path, device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor, str]:
    """Return every prompt's embedding (L, 4096), the negative prompt's, and what identifies the encoder.

    Raises DataError, one sentence, for a folder that is not UMT5's.
    """
    if encoder == ZEROS:
        none = torch.zeros(1, TEXT_DIM)
        return [none] * len(prompts), none, ZEROS
    config = DataConfig(videos=str(cache), text_encoder=encoder)
    files = text_files(config, [*prompts, negative], cache, device=device)
    identity = folder_identity(Path(encoder).expanduser())
    texts = [read_text(files[prompt], config.text_length) for prompt in prompts]
    return texts, read_text(files[negative], config.text_length), identity
