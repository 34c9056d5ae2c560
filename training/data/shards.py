"""Cached tensors on disk: safetensors files that appear whole or not at all, and that are verified before use."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import DataError

_log = logging.getLogger(__name__)

VERSION = "1"


def key_of(**parts: object) -> str:
    """Return a short stable key of everything that a cached tensor depends on."""
    text = "\n".join(f"{name}={parts[name]!r}" for name in sorted(parts))
    return hashlib.sha256(f"{VERSION}\n{text}".encode()).hexdigest()[:32]


def write_shard(path: Path, tensor: Tensor, key: str) -> None:
    """Write ``tensor`` under ``key`` to ``path``, atomically; an interrupted write leaves no file of that name.

    Raises ``DataError`` with one sentence when it cannot be written, a full disk for example.
    """
    tensor = tensor.contiguous().cpu()
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"data": tensor}, temporary, {"key": key, "crc32": _checksum(tensor)})
        with temporary.open("rb+") as stream:  # Windows syncs only what is open for writing
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path.parent}: the cache cannot be written ({error}); free some space, or set data.cache to another"
            " folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_shard(path: Path, key: str, shape: tuple[int | None, ...], *, content: bool = True) -> bool:
    """Return True if ``path`` holds the whole tensor of ``key``; a damaged file is named once and counts as absent.

    ``shape`` may have None for an extent that is not known. Without ``content`` only the header is read.
    """
    if not path.is_file():
        return False
    reason = None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            found = tuple(file.get_slice("data").get_shape())
            tensor = file.get_tensor("data") if content else None
        if metadata.get("key") != key:
            reason = "it belongs to other settings"
        elif len(found) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found)):
            reason = f"its shape is {found}"
        elif tensor is not None and metadata.get("crc32") != _checksum(tensor):
            reason = "its content does not match its checksum"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    if reason:
        _log.warning("%s: the cached file is damaged (%s) and is made again", path, reason)
    return reason is None


def read_shard(path: Path, *, verify: bool = False) -> Tensor:
    """Return the tensor of a file that was checked before.

    With ``verify`` it is checked once more, and a damaged or missing one is a ``DataError``; the damaged file is
    removed, so that the next start makes it again.
    """
    if not verify:
        with safe_open(path, "pt") as file:
            return file.get_tensor("data")
    try:
        with safe_open(path, "pt") as file:
            tensor, said = file.get_tensor("data"), (file.metadata() or {}).get("crc32")
        reason = None if said == _checksum(tensor) else "its content does not match its checksum"
    except (SafetensorError, OSError) as error:
        reason = str(error)
    if reason is None:
        return tensor
    path.unlink(missing_ok=True)
    raise DataError(f"{path}: the cached file is damaged ({reason}); start again, and it is made anew.")


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.view(-1).view(torch.uint8).numpy()):08x}" if tensor.numel() else "empty"
