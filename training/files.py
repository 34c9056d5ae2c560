"""Hashes of files, files forced to the disk, and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """Return the file's SHA-256 as hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(path: str | Path) -> str:
    """Return a hash of a file, or of a folder's weight files, that is quick however large they are.

    It covers names, sizes, the first and last MiB, and 64 KiB at 64 places between: enough to tell one model's weights
    from another's, whose values differ everywhere; not a proof that a file is whole.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.safetensors") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}\n".encode() if file == path else f"{file.relative_to(path)} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            for place in range(1, 65):
                stream.seek(size * place // 65)
                digest.update(stream.read(1 << 16))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file or directory to the disk; directories cannot be synced on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all; an older one of that name survives a failure."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
