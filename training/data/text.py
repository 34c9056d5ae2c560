"""Text embeddings of captions, cached by caption, encoder and length; UMT5 is loaded only if one is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from .errors import DataError
from .pretrained import load_whole
from .settings import DataConfig
from .shards import check_shard, key_of, read_shard, write_shard

_log = logging.getLogger(__name__)

ZEROS = "zeros"
TEXT_DIM = 4096


def text_files(
    config: DataConfig, captions: Iterable[str], cache: Path, *, device: torch.device | str = "cpu"
) -> dict[str, Path]:
    """Return {caption: cached file}, encoding what is missing; empty for the encoder 'zeros'.

    Files hold the embedding (n, 4096) of a caption's own tokens, bf16; padding is not stored.
    """
    if config.text_encoder == ZEROS:
        _log.info("text: every sample has the zero embedding (data.text_encoder = 'zeros'); captions are not used")
        return {}
    folder = Path(config.text_encoder).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; set data.text_encoder to 'zeros' or to a folder with UMT5 and its tokenizer."
        )
    identity = folder_identity(folder)
    files, missing = {}, []
    for caption in sorted(set(captions)):
        key = key_of(caption=caption, encoder=identity, length=config.text_length)
        files[caption] = cache / "text" / f"{key}.safetensors"
        if not check_shard(files[caption], key, (None, TEXT_DIM)):
            missing.append((caption, key))
    if missing:
        _log.info("text: %d of %d captions are encoded with %s", len(missing), len(files), folder)
        encoder = _Umt5(folder, config.text_length, device)
        for caption, key in missing:
            write_shard(files[caption], encoder(caption), key)
    return files


def read_text(path: Path | None, length: int) -> Tensor:
    """Return the embedding (length, 4096) float32 of a cached caption, zero-padded; None stands for no text at all.

    No text is returned as one zero token (1, 4096): cross-attention over equal tokens gives the same for any number
    of them, so 512 need not be computed.
    """
    if path is None:
        return torch.zeros(1, TEXT_DIM)
    stored = read_shard(path, verify=True)
    text = torch.zeros(length, stored.shape[1])
    text[: len(stored)] = stored
    return text


def folder_identity(folder: Path) -> str:
    """Return what tells one encoder from another: its configuration and the names and sizes of its weights."""
    parts = []
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".bin", ".model"):
            parts.append(f"{file.relative_to(folder).as_posix()}:{file.stat().st_size}")
        elif file.name == "config.json":
            parts.append(file.read_text(encoding="utf-8"))
    return key_of(files=parts)


class _Umt5:
    """UMT5 as Wan uses it: up to ``length`` tokens, the hidden states of the caption's own tokens."""

    def __init__(self, folder: Path, length: int, device: torch.device | str) -> None:
        from ..torchvision_guard import hide_broken_torchvision

        hide_broken_torchvision()
        try:
            from transformers import AutoTokenizer, UMT5EncoderModel

            tokens = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
            weights = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
            self.tokenizer = AutoTokenizer.from_pretrained(tokens, local_files_only=True)
            self.model = load_whole(UMT5EncoderModel, weights, torch.bfloat16)
        except (OSError, ValueError, ImportError) as error:
            first = str(error).splitlines()[0].split(". ")[0]  # some go on with all models that there are
            raise DataError(f"{folder}: UMT5 does not load ({first}); set data.text_encoder to its folder.") from error
        if self.model.config.d_model != TEXT_DIM:
            raise DataError(
                f"{folder}: this encoder's width is {self.model.config.d_model}, Wan needs UMT5-XXL's {TEXT_DIM}."
            )
        self.model = self.model.to(device).eval()
        self.length, self.device = length, device

    @torch.no_grad()
    def __call__(self, caption: str) -> Tensor:
        batch = self.tokenizer(caption, max_length=self.length, truncation=True, return_tensors="pt").to(self.device)
        return self.model(batch.input_ids, batch.attention_mask).last_hidden_state[0].to(torch.bfloat16).cpu()
