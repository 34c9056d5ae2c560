"""What the pack's own kinds of safetensors files share: their version, opening them, and errors that name the file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .checkpoint import HeaderError


def check_version(metadata: Mapping[str, str], key: str, newest: int, what: str, remedy: str) -> None:
    """Raise HeaderError for a version under ``key`` that is none or newer than ``newest``; ``what`` names its place."""
    version = metadata.get(key, "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise HeaderError(f"{what} says version {version[:40]!r}; it is damaged, {remedy}")
    if int(version) > newest:
        raise HeaderError(f"{what} is v{version}, this version reads up to v{newest}; update the node pack")


def named(path: Path, error: Exception) -> HeaderError:
    """Return an error that names the file, in one sentence whatever a name in the file holds."""
    return HeaderError(f"{path.name}: {' '.join(str(error)[:400].split()).rstrip('.')}.")


@contextlib.contextmanager
def opened(path: Path, remedy: str) -> Iterator[Any]:
    """Give the open safetensors file; HeaderError for one that cannot be read, during the body too."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error)[:200].split())
        raise HeaderError(f"{path.name} cannot be read ({reason}); {remedy}.") from None
