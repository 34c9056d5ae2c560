"""A model file with another FPSAttention header: the weights are copied byte for byte, none is read."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

from .checkpoint import MAX_HEADER_BYTES, PREFIX, CheckpointError, Header, HeaderError, read_metadata, replacing


def copy_with_header(source: str | Path, target: str | Path, header: Header) -> Path:
    """Write ``source``, a safetensors file, to ``target`` with ``header`` in place of its own, whole or not at all.

    Its other metadata stays. Raises HeaderError for a source that is missing, damaged or the target itself and for a
    header that could not be read back, and CheckpointError where the target cannot be written.
    """
    source, target = Path(source), Path(target)
    metadata, _ = read_metadata(source)
    if target.exists() and os.path.samefile(source, target):
        raise HeaderError(f"{target} is the file that is read; name another one, and the model stays as it is.")
    ours = header.to_metadata()
    Header.from_metadata(ours)
    kept = {name: value for name, value in metadata.items() if not name.startswith(PREFIX)}
    with source.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        entries = json.loads(file.read(length))
        entries["__metadata__"] = {"format": "pt", **kept, **ours}
        # Escaped as JSON may be, so that text which is no valid UTF-8 (half a surrogate pair) can be copied too.
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > MAX_HEADER_BYTES:
            raise HeaderError(
                f"the header of {target.name} would have {len(text) >> 20} MiB, a safetensors file has at most "
                f"{MAX_HEADER_BYTES >> 20}; choose a head table with fewer bands."
            )
        with replacing(target, source.stat().st_size + len(text)) as temporary, temporary.open("rb+") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            try:
                shutil.copyfileobj(file, out, 16 << 20)
            except OSError as error:
                raise CheckpointError(
                    f"{target.name} could not be written ({error.strerror}); nothing was kept."
                ) from None
    return target
