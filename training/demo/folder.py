"""The demo's output folder: its own, or none."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ..config import ConfigError

MARKER = ".fpsattention-demo"
_FOLDERS = {"dense", "joint", "comfyui"}
_FILES = re.compile(
    r"(base|A|B|C|D)_seed\d+\.mp4|(side_by_side|schedule|loss)\.png|table\.(md|json)|report\.txt"
    r"|wan2\.1-tiny-fpsattention\.safetensors"
)


def claim(folder: Path) -> None:
    """Make ``folder`` an empty demo folder: what an earlier demo left in it goes, and nobody else's files ever do.

    Raises ConfigError, one sentence, for a folder that holds anything and was not made by the demo.
    """
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder with --out.")
    if folder.is_dir() and not marker.is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds files that are not the demo's; name a new or empty folder with --out.")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for path in folder.iterdir():
        if path.name in _FOLDERS:
            shutil.rmtree(path)
        elif _FILES.fullmatch(path.name):
            path.unlink()
