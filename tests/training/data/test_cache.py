"""The cache: the same samples in every run, resumed, verified, and honest about bad clips."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fpsattention.training.data import build as build_module
from fpsattention.training.data import shards as shards_module
from fpsattention.training.data.cache import build_cache
from fpsattention.training.data.errors import DataError, VideoError
from fpsattention.training.data.settings import DataConfig
from fpsattention.training.vae import load_vae, vae_hash
from torch.utils.data import DataLoader

from .conftest import write_clip


@pytest.fixture
def config(good_clip, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(good_clip, folder / "a.mp4")
    (folder / "a.txt").write_text("a growing light")
    return DataConfig(
        videos=str(folder),
        frames=5,
        height=32,
        width=48,
        fps=25.0,
        samples_per_clip=3,
        val_samples_per_clip=2,
        holdout=0.25,
        cache=str(tmp_path / "cache"),
    )


@pytest.fixture
def build(vae_file):
    """Return a function that builds and also returns how many samples were encoded."""

    def run(config: DataConfig):
        calls = []

        def load():
            vae = load_vae(vae_file)
            inner = vae.quant_conv.register_forward_hook(lambda *_: calls.append(1))
            assert inner
            return vae

        dataset = build_cache(config, load, vae_hash(vae_file), progress=False)
        return dataset, len(calls)

    return run


def files(config: DataConfig):
    return sorted(Path(config.cache).rglob("*.safetensors"))


def test_samples(config, build):
    dataset, encoded = build(config)
    assert (len(dataset.train), len(dataset.val), encoded) == (3, 2, 5)
    sample = dataset.train[1]
    assert sample["latent"].shape == (16, 2, 4, 6) and sample["latent"].dtype == torch.float32
    assert sample["name"] == "a/train/1" and sample["text"].shape == (1, 4096) and not sample["text"].any()
    assert not torch.equal(dataset.train[0]["latent"], dataset.train[1]["latent"])
    with pytest.raises(IndexError):
        dataset.train[3]


def test_a_second_build_encodes_nothing_and_gives_the_same(config, build):
    first, _ = build(config)
    again, encoded = build(config)
    assert encoded == 0
    for part in ("train", "val"):
        for one, other in zip(getattr(first, part), getattr(again, part), strict=True):
            assert torch.equal(one["latent"], other["latent"])


def test_samples_do_not_depend_on_the_folder(config, build, good_clip, tmp_path):
    alone, _ = build(config)
    write_clip(tmp_path / "videos" / "0-first.mp4", frames=44)
    (tmp_path / "videos" / "0-first.txt").write_text("another")
    shutil.move(tmp_path / "videos" / "a.mp4", tmp_path / "videos" / "z.mp4")
    shutil.move(tmp_path / "videos" / "a.txt", tmp_path / "videos" / "z.txt")
    both, encoded = build(config)
    assert encoded == 5, "the moved clip is known by its content"
    moved = {sample["name"]: sample["latent"] for sample in both.train}
    assert all(torch.equal(sample["latent"], moved[f"z/train/{i}"]) for i, sample in enumerate(alone.train))


def test_more_samples_keep_the_first_ones(config, build):
    few, _ = build(config.model_copy(update={"samples_per_clip": 16}))
    many, encoded = build(config.model_copy(update={"samples_per_clip": 20}))
    assert encoded == 4
    assert all(torch.equal(few.train[i]["latent"], many.train[i]["latent"]) for i in range(16))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"fps": 16.0}, {"height": 48}, {"frames": 9}, {"holdout": 0.4}, {"scale_range": (1.0, 1.2)}]
)
def test_settings_that_change_samples_change_the_cache(config, build, change):
    build(config)
    assert build(config.model_copy(update=change))[1] == 5


def test_an_interrupted_build_goes_on(config, build, monkeypatch):
    config = config.model_copy(update={"samples_per_clip": 20})
    real, done = build_module.write_shard, []

    def write(path, *args):
        if done:
            raise KeyboardInterrupt
        done.append(path)
        real(path, *args)

    monkeypatch.setattr(build_module, "write_shard", write)
    with pytest.raises(KeyboardInterrupt):
        build(config)
    monkeypatch.setattr(build_module, "write_shard", real)
    dataset, encoded = build(config)
    assert encoded == 20 + 2 - 16 and len(dataset.train) == 20
    assert not list(files(config)[0].parent.parent.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_file_is_made_again_with_one_warning(config, build, caplog, damage):
    before, _ = build(config)
    want = [sample["latent"] for sample in before.train] + [sample["latent"] for sample in before.val]
    victim = files(config)[0]
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        content = content[:-100]
    elif damage == "flipped":
        content[-50] ^= 0xFF
    elif damage == "empty":
        content = b""
    else:
        content = b"not a safetensors file" * 10
    victim.unlink()  # the data set above maps the old file
    victim.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        after, encoded = build(config)
    assert encoded in (2, 3)
    assert len([r for r in caplog.records if "damaged" in r.message]) == 1
    got = [sample["latent"] for sample in after.train] + [sample["latent"] for sample in after.val]
    assert all(torch.equal(one, other) for one, other in zip(want, got, strict=True))


def test_training_windows_end_before_the_held_out_part():
    from fpsattention.training.data.sampling import part_range

    config = DataConfig(videos="x", frames=29, holdout=0.375)
    train, val = part_range(config, 84, "train"), part_range(config, 84, "val")
    assert train[-1] + 29 == 52 and val[0] == 52 and val[-1] + 29 == 84
    assert not part_range(config, 60, "val")


def test_pieces_of_samples_agree_with_the_pixels(good_clip):
    """Every cut lies inside its frame and its window, and its brightness is that of its frames."""
    from fpsattention.training.data.sampling import draw_cut, level_sizes, part_range, take
    from fpsattention.training.data.video import read_clip

    config = DataConfig(videos="x", frames=5, height=32, width=48, fps=25.0, scale_range=(1.0, 1.5))
    bucket = (5, 32, 48)
    sizes = level_sizes(config, bucket, (48, 64))
    clip = read_clip(good_clip, fps=25, sizes=sizes)
    starts = part_range(config, clip.length, "train")
    cuts = [draw_cut(config, bucket, "hash", "train", i, starts, sizes) for i in range(40)]
    assert {cut.level for cut in cuts} == {0, 1, 2, 3} and {cut.flip for cut in cuts} == {False, True}
    assert len(set(cuts)) > 35
    for cut in cuts:
        video = take(bucket, clip, cut)
        assert video.shape == (3, 5, 32, 48) and video.abs().max() <= 1
        level = ((video.mean((0, 2, 3)) + 1) * 127.5 - 30) / 4
        assert np.abs(level.numpy() - (cut.start + np.arange(5))).max() < 1.0


def test_missing_captions(config, build, tmp_path):
    for name in [f"b{i:02}" for i in range(12)]:
        shutil.copy(tmp_path / "videos" / "a.mp4", tmp_path / "videos" / f"{name}.mp4")
    with pytest.raises(DataError, match=r"12 of 13 clips have no caption: b00\.txt, .*b09\.txt and 2 more") as caught:
        build(config)
    assert "'skip' or 'empty'" in str(caught.value) and "b10" not in str(caught.value)
    assert len(build(config.model_copy(update={"captions": "skip"}))[0].train) == 3
    assert len(build(config.model_copy(update={"captions": "empty"}))[0].train) == 39


def test_no_caption_left(config, build, tmp_path):
    (tmp_path / "videos" / "a.txt").unlink()
    with pytest.raises(DataError, match="none is left"):
        build(config.model_copy(update={"captions": "skip"}))


def test_a_bad_clip_is_listed_and_counted(config, build, tmp_path):
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"nonsense" * 100)
    (tmp_path / "videos" / "bad.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"1 of 2 clips are unusable.*bad\.mp4"):
        build(config)
    dataset, _ = build(config.model_copy(update={"max_bad": 0.5}))
    assert len(dataset.train) == 3 and dataset.bad == 1
    entry = json.loads((tmp_path / "cache" / "bad.jsonl").read_text())
    assert entry["path"].endswith("bad.mp4") and "not a readable video" in entry["reason"] and entry["frames"] == 0


def test_a_single_bad_clip_says_its_own_reason(config, build, tmp_path):
    path = tmp_path / "one.mp4"
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="the file is empty"):
        build(config.model_copy(update={"videos": str(path), "captions": "empty", "max_bad": 0.0}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"videos": "/nowhere/at/all"}, "no such video or folder"),
        ({"frames": 33}, "do not hold one sample of 33"),
        ({"frames": 13}, "for validation; raise data.holdout"),
    ],
)
def test_nothing_to_train_on(config, build, change, says):
    with pytest.raises(DataError, match=says):
        build(config.model_copy(update={**change, "captions": "empty"}))


def test_a_folder_without_videos(config, build, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no video in this folder"):
        build(config.model_copy(update={"videos": str(tmp_path / "none")}))


def test_pickles_small_and_works_in_spawned_workers(config, build):
    dataset, _ = build(config)
    dataset.train[0]
    assert len(pickle.dumps(dataset)) < 10_000
    loader = DataLoader(dataset.train, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    got = torch.cat([batch["latent"] for batch in loader])
    assert torch.equal(got, torch.stack([sample["latent"] for sample in dataset.train]))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards_module, "save_file", full)
    with pytest.raises(DataError, match=r"cannot be written .*No space left.*set data\.cache"):
        shards_module.write_shard(tmp_path / "cache" / "x.safetensors", torch.zeros(2), "key")
    assert not list((tmp_path / "cache").iterdir())
