"""Several data sets, lists in JSON lines, images beside videos, captions as editors write them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from fpsattention.training.data.cache import build_cache
from fpsattention.training.data.captions import caption_beside
from fpsattention.training.data.clips import find_sources
from fpsattention.training.data.errors import DataError, VideoError
from fpsattention.training.data.order import plan_step
from fpsattention.training.data.settings import DataConfig
from fpsattention.training.vae import load_vae, vae_hash
from PIL import Image

from .conftest import write_clip

SHAPE = {"frames": 5, "height": 32, "width": 48, "fps": 25.0, "samples_per_clip": 2, "val_samples_per_clip": 1}


@pytest.fixture
def config(tmp_path):
    """Return a function that gives a configuration with these sets."""

    def make(*sets, **changes):
        common = {**SHAPE, "holdout": 0.0, "captions": "empty", "cache": str(tmp_path / "cache")}
        return DataConfig(sets=list(sets), **{**common, **changes})

    return make


@pytest.fixture
def build(vae_file):
    def run(config, **more):
        return build_cache(config, lambda: load_vae(vae_file), vae_hash(vae_file), progress=False, **more)

    return run


def write_image(path, size=(48, 64), seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).resize(size[::-1]).save(path, **options)
    return path


def write_lines(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_sets_of_videos_and_images_with_weights(config, build, good_clip, tmp_path):
    (tmp_path / "a b é").mkdir()
    shutil.copy(good_clip, tmp_path / "a b é" / "ein Film ü.mp4")
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        write_image(tmp_path / "pictures" / f"{number}.png", seed=number)
    dataset = build(
        config(
            {"name": "films", "weight": 3.0, "videos": str(tmp_path / "a b é")},
            {"name": "stills", "videos": str(tmp_path / "pictures"), "kind": "images"},
        )
    )
    train = dataset.train
    assert [(s.name, s.first, s.count) for s in train.sets] == [("films", 0, 2), ("stills", 2, 3)]
    assert [train.bucket(i) for i in range(5)] == [(2, 4, 6)] * 2 + [(1, 4, 6)] * 3
    assert train[0]["latent"].shape == (16, 2, 4, 6) and train[4]["latent"].shape == (16, 1, 4, 6)
    assert train[0]["name"] == "films/ein Film ü/train/0" and train[2]["name"] == "stills/0/train/0"
    seen = [index for step in range(100) for _, index in plan_step(0, step, 4, train)]
    assert abs(sum(index < 2 for index in seen) - 300) <= 4


def test_a_list_in_json_lines(config, build, good_clip, tmp_path):
    (tmp_path / "clips").mkdir()
    shutil.copy(good_clip, tmp_path / "clips" / "schöner film.mp4")
    write_image(tmp_path / "clips" / "p.jpg")
    clip = "clips/schöner film.mp4"
    text = "\ufeff" + "\r\n".join(
        json.dumps(line, ensure_ascii=False)
        for line in (
            {"path": clip, "caption": "ein\u2028Löwe"},
            {"path": clip, "caption": "the end", "start": 0.8, "end": 1.4, "weight": 2},
            {"path": "clips/p.jpg", "caption": "a picture"},
        )
    )
    listed = tmp_path / "list.jsonl"
    listed.write_bytes(text.replace("\r\n", "\r\n\r\n", 1).encode())
    chosen = config({"name": "l", "file": str(listed)}, scale_range=[1.0, 1.0], flip=False)
    found = find_sources(chosen, tmp_path / "cache")
    assert [s.caption for s in found.sources] == ["ein Löwe", "the end", "a picture"] and not found.refused
    dataset = build(chosen)
    names = [sample.name for sample in dataset.train.samples]
    assert names[:2] == ["l/clips/schöner film/train/0", "l/clips/schöner film/train/1"]
    assert names[2:] == [f"l/clips/schöner film@0.8-1.4/train/{i}" for i in range(4)] + ["l/clips/p/train/0"]


def test_a_piece_is_that_piece(good_clip):
    from fpsattention.training.data.video import read_clip, scan_clip

    whole = read_clip(good_clip, fps=25)
    piece = read_clip(good_clip, fps=25, start=0.8, end=1.4)
    assert piece.length == 15 and np.array_equal(piece.frames[0], whole.frames[0][20:35])
    assert scan_clip(good_clip, fps=25, start=0.8, end=1.4).length == 15
    some = read_clip(good_clip, fps=25, sizes=[(48, 64), (24, 32)], keep=[{3, 4}, {4, 5}])
    assert np.array_equal(some.frames[0][3:5], whole.frames[0][3:5]) and some.source_frames < 12
    for bounds in ({"start": 1.7}, {"end": 2.0}):
        with pytest.raises(VideoError, match=r"but the clip is 1\.60 seconds long"):
            scan_clip(good_clip, fps=25, **bounds)


def test_bad_lines_are_quarantined(config, build, good_clip, tmp_path):
    write_image(tmp_path / "p.png")
    lines = [
        "not json",
        "[1, 2]",
        {"caption": "no path"},
        {"path": "x.mp4", "captoin": "typo"},
        {"path": str(good_clip), "caption": 3},
        {"path": str(good_clip), "start": -1},
        {"path": str(good_clip), "start": 3, "end": 2},
        {"path": str(good_clip), "weight": 0},
        '{"path": "x.mp4", "start": NaN}',
        {"path": "missing.mp4"},
        {"path": str(good_clip), "start": 99},
    ]
    says = [
        "1: the line is not JSON", "2: the line is a list", "path is null", r"'captoin' \(did you mean caption\?\)",
        "caption is a number", "start is -1", "end is 2, not after start 3", "weight is 0", "start is NaN",
        "no such file", "start is 99, but the clip is",
    ]  # fmt: skip
    listed = write_lines(tmp_path / "list.jsonl", *lines, {"path": "p.png"})
    with pytest.raises(DataError, match="10 of 12 clips are unusable, more than"):
        build(config({"name": "l", "file": str(listed)}))
    dataset = build(config({"name": "l", "file": str(listed)}, max_bad=0.95))
    assert len(dataset.train) == 1 and dataset.bad == 11
    bad = [json.loads(line) for line in (tmp_path / "cache" / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    for entry, said in zip(bad, says, strict=True):
        assert __import__("re").search(said, entry["reason"]), (entry, said)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "the list cannot be read"), (b"\n\r\n", "the list is empty"), (b"\xff\xfe{", "not UTF-8 text")],
)
def test_a_list_that_is_none(config, build, tmp_path, content, says):
    if content is not None:
        (tmp_path / "list.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=says):
        build(config({"name": "l", "file": str(tmp_path / "list.jsonl")}))


def test_a_set_without_a_usable_clip_is_named(config, build, good_clip, tmp_path):
    (tmp_path / "short").mkdir()
    write_clip(tmp_path / "short" / "s.mp4", frames=3)
    sets = {"name": "good", "videos": str(good_clip)}, {"name": "short", "videos": str(tmp_path / "short")}
    with pytest.raises(DataError, match="set 'short': no usable clip is left"):
        build(config(*sets, max_bad=0.5))


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"\xef\xbb\xbfa dog\r\n", "a dog"),
        (b"\r\n\r\na dog \r\n\r\n runs\r\n", "a dog runs"),
        ("ein Löwe\u00a0läuft 狮子\n".encode(), "ein Löwe läuft 狮子"),
        (b"\r\n \n", None),
        (b"", None),
    ],
)
def test_captions_as_editors_write_them(tmp_path, content, caption):
    (tmp_path / "ein Clip.txt").write_bytes(content)
    assert caption_beside(tmp_path / "ein Clip.mp4") == caption


@pytest.mark.parametrize(
    ("content", "says"),
    [("a dog".encode("utf-16"), "UTF-16 text; save it as UTF-8"), (b"L\xf6we", "not UTF-8"), (b"a\0b", "null char")],
)
def test_a_caption_that_is_no_text_costs_its_clip(config, build, good_clip, tmp_path, content, says):
    for name in ("a", "b"):
        shutil.copy(good_clip, tmp_path / f"{name}.mp4")
    (tmp_path / "b.txt").write_bytes(content)
    dataset = build(config(videos=str(tmp_path), max_bad=0.5))
    assert len(dataset.train) == 2
    assert says in json.loads((tmp_path / "cache" / "bad.jsonl").read_text())["reason"]


def test_held_out_images(config, build, tmp_path):
    (tmp_path / "p").mkdir()
    for number in range(12):
        write_image(tmp_path / "p" / f"{number}.png", seed=number)
    sets = {"name": "p", "videos": str(tmp_path / "p"), "kind": "images"}
    dataset = build(config(sets, holdout=0.4))
    assert len(dataset.train) + len(dataset.val) == 12 and len(dataset.val) >= 2
    assert not {s.name.split("/")[1] for s in dataset.train.samples} & {
        s.name.split("/")[1] for s in dataset.val.samples
    }


def test_clips_go_to_buckets_and_the_start_says_how_many(config, build, tmp_path, caplog):
    (tmp_path / "v").mkdir()
    write_clip(tmp_path / "v" / "long.mp4", frames=14)
    write_clip(tmp_path / "v" / "short.mp4", frames=7)
    write_clip(tmp_path / "v" / "upright.mp4", frames=14, height=64, width=48)
    buckets = [[9, 32, 48], [5, 32, 48], [9, 48, 32]]
    with caplog.at_level("INFO"):
        dataset = build(config(videos=str(tmp_path / "v"), buckets=buckets))
    assert [dataset.train.bucket(i) for i in range(6)] == [(3, 4, 6)] * 2 + [(2, 4, 6)] * 2 + [(3, 6, 4)] * 2
    assert all(sample["latent"].shape[1:] == dataset.train.bucket(i) for i, sample in enumerate(dataset.train))
    assert "9 frames of 48 x 32:       2 samples" in caplog.text


def test_hard_cuts_are_found_and_kept_out_of_samples(tmp_path, config, build):
    import av
    from fpsattention.training.data.video import scan_clip

    path = tmp_path / "cut.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for number in range(30):
            scene = 0 if number < 11 else 1 if number < 20 else 2
            color = np.array([(200, 60, 40), (40, 80, 200), (90, 190, 60)][scene])
            image = color + rng.integers(-20, 21, (48, 64, 3)) + number  # and a slow change of light
            for packet in stream.encode(
                av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            ):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    assert scan_clip(path, fps=25, scene_cuts=True).cuts == (11, 20)
    assert scan_clip(path, fps=25).cuts == ()
    plain = build(config(videos=str(path), samples_per_clip=8))
    kept = build(config(videos=str(path), samples_per_clip=8, scene_cuts=True))
    assert plain.train.fingerprint() != kept.train.fingerprint()
    with pytest.raises(VideoError, match=r"30 frames in 3 scenes .* do not hold one sample of 13"):
        build(config(videos=str(path), frames=13, scene_cuts=True))


def test_fingerprints_tell_data_apart(config, build, good_clip):
    one = build(config(videos=str(good_clip)))
    assert one.train.fingerprint() == build(config(videos=str(good_clip))).train.fingerprint()
    assert one.train.fingerprint() != build(config(videos=str(good_clip), seed=1)).train.fingerprint()
    assert torch.equal(one.train[0]["latent"], build(config(videos=str(good_clip))).train[0]["latent"])
