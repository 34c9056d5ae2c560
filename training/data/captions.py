"""Captions: text files beside the clips, as editors of all systems write them."""

from __future__ import annotations

import codecs
from pathlib import Path

from .errors import VideoError


def tidy(text: str) -> str:
    """Return ``text`` as one line: lines, blank ones too, and runs of spaces become single spaces, as Wan reads it."""
    return " ".join(text.replace("\ufeff", "").split())


def caption_beside(path: Path) -> str | None:
    """Return the caption in the ``.txt`` beside a clip; None if there is no such file or nothing in it.

    Raises ``VideoError`` with one sentence for a file that is not UTF-8 text or cannot be read.
    """
    file = path.with_suffix(".txt")
    try:
        if not file.is_file():
            return None
        data = file.read_bytes()
    except OSError as error:
        raise VideoError(f"{file}: the caption cannot be read ({error.strerror}); check its permissions.") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise VideoError(f"{file}: the caption is UTF-16 text; save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VideoError(f"{file}: the caption is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    if "\0" in text:
        raise VideoError(f"{file}: the caption holds null characters, so it is not text; write it again.")
    return tidy(text) or None
