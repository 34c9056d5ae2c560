"""Small files, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Make ``data`` the content of the file at ``path`` and its folder where there is none; raises OSError, and then
    an older file of that name is as it was and nothing else is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # Opened like any new file, not by tempfile: that gives files only their owner can read.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target``; on Windows a reader may hold the target for a moment."""
    for left in range(20, -1, -1):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not left or sys.platform != "win32":
                raise
            time.sleep(0.05)
