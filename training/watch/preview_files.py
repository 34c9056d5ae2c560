"""Where previews lie: ``previews/step-000500.png`` (frames), ``step-000500_*.mp4`` and ``step-000500.json``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = "previews"
_SHEET = re.compile(r"step-(\d{6,})\.png")


@dataclass(frozen=True)
class Previews:
    """The previews of one step: a sheet of frames, videos, and a sentence about them."""

    step: int
    sheet: Path
    videos: tuple[Path, ...]
    said: str


def stem_of(step: int) -> str:
    """Return what the names of a step's previews begin with."""
    return f"step-{step:06d}"


def last_previews(folder: Path) -> Previews | None:
    """Return the newest previews of a run's folder, or None."""
    place = folder / FOLDER
    sheets = [(int(m.group(1)), p) for p in place.glob("step-*.png") if (m := _SHEET.fullmatch(p.name))]
    if not sheets:
        return None
    step, sheet = max(sheets)
    videos = tuple(sorted(place.glob(f"{stem_of(step)}_*.mp4")))
    try:
        said = str(json.loads((place / f"{stem_of(step)}.json").read_text(encoding="utf-8")).get("said", ""))
    except (OSError, ValueError, AttributeError):
        said = ""
    return Previews(step, sheet, videos, said)
