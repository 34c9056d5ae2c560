"""A model file with another FPSAttention header: the weights are copied byte for byte, none is read."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

from .checkpoint import PREFIX, CheckpointError, Header, HeaderError, replacing, read_metadata


def copy_with_header(source: str | Path, target: str | Path, header: Header) -> Path:
    """Write ``source``, a safetensors file, to ``target`` with ``header`` in place of its own, whole or not at all.

    Its other metadata stays. Raises HeaderError for a source that is missing, damaged or the target itself, and
    CheckpointError where the target cannot be written.
    """
    source, target = Path(source), Path(target)
    metadata, _ = read_metadata(source)
    if target.exists() and os.path.samefile(source, target):
        raise HeaderError(f"{target} is the file that is read; name another one, and the model stays as it is.")
    kept = {name: value for name, value in metadata.items() if not name.startswith(PREFIX)}
    with source.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        entries = json.loads(file.read(length))
        entries["__metadata__"] = {"format": "pt", **kept, **header.to_metadata()}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with replacing(target, source.stat().st_size + len(text)) as temporary, temporary.open("rb+") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            try:
                shutil.copyfileobj(file, out, 16 << 20)
            except OSError as error:
                raise CheckpointError(
                    f"{target.name} could not be written ({error.strerror}); nothing was kept."
                ) from None
    return target
