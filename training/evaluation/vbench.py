"""VBench's imaging quality and subject consistency, through its own package where that is installed."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import replace_file
from .measure import Clip
from .request import Method

_log = logging.getLogger(__name__)
DIMENSIONS = ("imaging_quality", "subject_consistency")
_OURS = re.compile(r"\d{3,}_seed\d+\.mp4")


@dataclass(frozen=True)
class Scores:
    """By method's key: {dimension: score}; ``reason`` says why there are none, or is None."""

    by_method: dict[str, dict[str, float]]
    reason: str | None = None


def vbench_scores(methods: Sequence[Method], clips: Sequence[Clip], out: Path, device: str) -> Scores:
    """Return the scores of every method's videos; those of unchanged videos are not computed again."""
    try:
        import vbench
        from vbench import VBench
    except Exception as error:  # its dependencies fail in many ways, and the table is complete without it
        missing = isinstance(error, ModuleNotFoundError) and error.name == "vbench"
        return Scores({}, "not installed" if missing else f"does not import ({type(error).__name__}: {error})")
    info = Path(vbench.__file__).parent / "VBench_full_info.json"
    place, found = out / "vbench", {}
    for method in methods:
        mine = [clip for clip in clips if clip.method == method.key]
        folder = mine[0].video.parent
        names = {clip.video.name for clip in mine}
        for old in folder.iterdir():  # VBench takes all that is there, videos of an earlier request too
            if _OURS.fullmatch(old.name) and old.name not in names:
                old.unlink()
        digest = hashlib.sha256()
        for clip in mine:
            digest.update(clip.video.read_bytes())
        note = place / f"{method.key}.json"
        kept = _kept(note, digest.hexdigest())
        if kept is None:
            try:
                judge = VBench(torch.device(device), str(info), str(place))
                judge.evaluate(
                    videos_path=str(folder), name=method.key, dimension_list=list(DIMENSIONS), mode="custom_input"
                )
                results = json.loads((place / f"{method.key}_eval_results.json").read_text(encoding="utf-8"))
                kept = {name: _share(results[name][0]) for name in DIMENSIONS}
            except Exception as error:
                said = next(iter(str(error).splitlines()), "") or type(error).__name__
                _log.warning("VBench failed: %s", said)
                return Scores(found, f"failed ({said})")
            place.mkdir(parents=True, exist_ok=True)
            replace_file(note, json.dumps({"key": digest.hexdigest(), "scores": kept}).encode())
        found[method.key] = kept
    return Scores(found)


def _share(score: float) -> float:
    """Return a score in [0, 1]: older versions give imaging quality in percent."""
    return float(score) / 100 if score > 1 else float(score)


def _kept(path: Path, key: str) -> dict[str, float] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["scores"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
