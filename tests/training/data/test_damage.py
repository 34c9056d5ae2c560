"""Whatever is wrong with a file costs that file only, and bad.jsonl says what it was."""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fpsattention.training.data.cache import build_cache
from fpsattention.training.data.errors import DataError
from fpsattention.training.data.settings import DataConfig
from fpsattention.training.vae import load_vae, vae_hash
from PIL import Image

from .conftest import write_clip
from .damage import CASES

COMMON = {
    "frames": 5, "height": 32, "width": 48, "fps": 25.0, "samples_per_clip": 1, "holdout": 0.0, "captions": "empty",
    "scale_range": [1.0, 1.0], "flip": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Path]:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("good")
    files = {suffix: write_clip(folder / f"good{suffix}", frames=30) for suffix in (".mp4", ".mkv", ".avi")}
    shade = np.linspace(0, 255, 96)[:, None, None] * np.linspace(0.2, 1, 128)[:, None]
    noise = np.random.default_rng(0).normal(0, 8, (96, 128, 3))
    picture = Image.fromarray((shade * np.ones(3) + noise).clip(0, 255).astype(np.uint8))
    for suffix in (".jpg", ".png"):
        picture.save(folder / f"good{suffix}")
        files[suffix] = folder / f"good{suffix}"
    return files


def lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of mode 0 cannot be opened from now on, not even by root, who may do everything."""
    if os.geteuid() != 0:
        return
    for module in (builtins, io):
        real = module.open

        def refuse(file, *args, real=real, **kwargs):
            if isinstance(file, (str, Path)) and os.path.exists(file) and not os.stat(file).st_mode & 0o444:
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *args, **kwargs)

        monkeypatch.setattr(module, "open", refuse)


def scene(folder: Path, good: dict[str, Path], names: list[str]) -> list[dict]:
    """Write two good clips, a good picture and the damaged ones; return the sets."""
    (folder / "files").mkdir()
    (folder / "list").mkdir()
    shutil.copy(good[".mp4"], folder / "files" / "good.mp4")
    shutil.copy(good[".jpg"], folder / "files" / "picture.jpg")
    shutil.copy(good[".mp4"], folder / "list" / "good.mp4")
    lines = ['{"path": "good.mp4", "start": 0.2, "caption": "good"}']
    for name in names:
        make, _ = CASES[name]
        if isinstance(make, str):
            lines.append(make)
        else:
            make(folder / "files" / name, good)
    (folder / "list" / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return [
        {"name": "files", "videos": str(folder / "files"), "kind": "both"},
        {"name": "list", "file": str(folder / "list" / "list.jsonl")},
    ]


def build(folder: Path, sets: list[dict], vae_file: Path, **changes):
    config = DataConfig(**{**COMMON, "sets": sets, "cache": str(folder / "cache"), **changes})
    return build_cache(config, lambda: load_vae(vae_file), vae_hash(vae_file), progress=False)


@pytest.fixture(scope="module")
def quarantined(good, vae_file, tmp_path_factory):
    """All cases in one build: {file name or line number: reason}, and the data set."""
    folder = tmp_path_factory.mktemp("damaged")
    sets = scene(folder, good, list(CASES))
    with pytest.MonkeyPatch.context() as patch:
        lock(patch)
        dataset = build(folder, sets, vae_file, max_bad=0.99)
    entries = [json.loads(line) for line in (folder / "cache" / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    return entries, dataset


def test_there_are_enough_kinds():
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_is_quarantined_with_its_reason(quarantined, name):
    entries, _ = quarantined
    make, says = CASES[name]
    if isinstance(make, str):
        found = [e for e in entries if "list" in e["path"] and re.search(says, e["reason"])]
    else:
        found = [e for e in entries if Path(e["path"]).name == name]
    assert found, f"{name} is not in bad.jsonl"
    for entry in found[:1]:
        assert re.search(says, entry["reason"]), entry["reason"]
        assert "\n" not in entry["reason"] and entry["reason"].endswith(".") and entry["frames"] >= 0


def test_the_good_ones_survive(quarantined):
    entries, dataset = quarantined
    assert [s.name for s in dataset.train.samples] == [
        "files/good/train/0", "files/picture/train/0", "list/good@0.2-end/train/0",
    ]  # fmt: skip
    assert len(entries) == dataset.bad == len(CASES)
    assert all(sample["latent"].isfinite().all() for sample in dataset.train)


def test_too_many_bad_ones_stop_the_run(good, vae_file, tmp_path):
    sets = scene(tmp_path, good, ["random.mp4", "text.png", "too short.mp4"])
    with pytest.raises(DataError, match=r"3 of 6 clips are unusable, more than data\.max_bad = 0\.4 allows"):
        build(tmp_path, sets, vae_file, max_bad=0.4)
    assert len((tmp_path / "cache" / "bad.jsonl").read_text().splitlines()) == 3
    assert build(tmp_path, sets, vae_file, max_bad=0.5).bad == 3


def test_a_mended_file_is_taken_again(good, vae_file, tmp_path):
    sets = scene(tmp_path, good, ["cut at half.mkv"])
    assert build(tmp_path, sets, vae_file, max_bad=0.5).bad == 1
    shutil.copy(good[".mkv"], tmp_path / "files" / "cut at half.mkv")
    dataset = build(tmp_path, sets, vae_file)
    assert dataset.bad == 0 and len(dataset.train) == 4
    assert (tmp_path / "cache" / "bad.jsonl").read_text() == ""
