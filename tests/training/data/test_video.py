"""Clips are decoded whole or refused in one sentence; resampling keeps time."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from fpsattention.training.data.errors import VideoError
from fpsattention.training.data.video import cover_size, probe, read_clip

from .conftest import write_clip


def numbers_of(frames: np.ndarray) -> np.ndarray:
    """The frame numbers, read back from the brightness that grows by 4 per frame."""
    return (frames.astype(float).mean((1, 2, 3)) - 30) / 4


def test_all_frames_at_the_clips_own_rate(good_clip):
    clip = read_clip(good_clip)
    assert clip.frames[0].shape == (40, 48, 64, 3) and clip.frames[0].dtype == np.uint8
    assert (clip.fps, clip.source_frames, clip.source_size) == (25.0, 40, (48, 64))
    assert np.abs(numbers_of(clip.frames[0]) - np.arange(40)).max() < 0.5


@pytest.mark.parametrize(("fps", "count"), [(16, 25), (25, 40), (12.5, 20), (50, 79), (5, 8)])
def test_resampling_takes_the_nearest_frame(good_clip, fps, count):
    clip = read_clip(good_clip, fps=fps)
    instants = np.arange(count) / fps
    numbers = numbers_of(clip.frames[0])
    assert clip.length == count
    assert np.abs(numbers - instants * 25).max() <= 0.5 + 0.2  # half a frame, and the codec's error


def test_sizes_are_made_in_one_decoding(good_clip):
    clip = read_clip(good_clip, sizes=lambda source: [source, (24, 32), (96, 128)])
    assert [f.shape[1:3] for f in clip.frames] == [(48, 64), (24, 32), (96, 128)]
    whole, half, double = (f.astype(float).mean() for f in clip.frames)
    assert abs(whole - half) < 1.5 and abs(whole - double) < 1.5


@pytest.mark.parametrize("source", [(720, 1280), (1280, 720), (144, 176), (1, 1), (77, 3000)])
@pytest.mark.parametrize("scale", [1.0, 1.6])
def test_cover_size_covers(source, scale):
    height, width = cover_size(source, 128, 192, scale)
    assert height >= 128 and width >= 192
    assert min(height - 128 * scale, width - 192 * scale) < 1.01


def test_probe(good_clip):
    found = probe(good_clip)
    assert (found.frames, found.fps, found.size) == (40, 25.0, (48, 64))


def _one_sentence(error: VideoError) -> None:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) < 400


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.mp4", b"", "empty"),
        ("text.mp4", b"this is not a video\n" * 50, "not a readable video"),
        ("random.mp4", np.random.default_rng(0).bytes(4000), "not a readable video"),
        ("missing.mp4", None, "no such file"),
    ],
)
def test_no_video_at_all(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for action in (read_clip, probe):
        with pytest.raises(VideoError, match=says) as caught:
            action(path)
        _one_sentence(caught.value)
        assert caught.value.decoded == 0


def test_truncated_with_the_index_at_the_end(good_clip, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(good_clip.read_bytes()[:-2000])
    with pytest.raises(VideoError, match="not a readable video") as caught:
        read_clip(path)
    _one_sentence(caught.value)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_with_the_index_in_front(tmp_path, suffix, share):
    """A decoder reads such a file to the cut without complaint; the announced length tells."""
    options = {"options": {"movflags": "faststart"}} if suffix == ".mp4" else {}
    whole = write_clip(tmp_path / f"whole{suffix}", frames=60, **options)
    assert read_clip(whole).length == 60
    content = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VideoError) as caught:
        read_clip(path)
    _one_sentence(caught.value)


@pytest.mark.parametrize("fps", [None, 16])
def test_zeros_in_the_middle(good_clip, tmp_path, fps):
    content = bytearray(good_clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path = tmp_path / "rotten.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        read_clip(path, fps=fps)
    _one_sentence(caught.value)
    assert 0 < caught.value.decoded < 40


def test_no_video_stream(tmp_path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(VideoError, match="no video stream"):
        read_clip(path)


def test_the_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(VideoError("a sentence.", decoded=7)))
    assert (str(error), error.decoded) == ("a sentence.", 7)


@pytest.mark.parametrize("fps", [None, 16])
def test_a_clip_that_is_too_large(good_clip, fps):
    with pytest.raises(VideoError, match="cut the video into shorter clips") as caught:
        read_clip(good_clip, fps=fps, limit=20 * 48 * 64 * 3)
    _one_sentence(caught.value)
    assert 20 < caught.value.decoded < 40


@pytest.mark.parametrize(("degrees", "turned"), [(0, False), (90, True), (180, False), (270, True)])
def test_a_phones_clip_is_shown_upright(good_clip, tmp_path, degrees, turned):
    """The container's display matrix turns the picture, as every player does."""
    import struct

    content = bytearray(good_clip.read_bytes())
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = matrix
    path = tmp_path / "turned.mp4"
    path.write_bytes(content)
    upright = read_clip(good_clip).frames[0]
    clip = read_clip(path, sizes=lambda shown: [shown, (shown[0] // 2, shown[1] // 2)])
    assert clip.source_size == ((64, 48) if turned else (48, 64))
    assert clip.frames[1].shape[1:3] == (clip.source_size[0] // 2, clip.source_size[1] // 2)
    clockwise = np.rot90(upright, -degrees // 90, axes=(1, 2))
    assert np.abs(clip.frames[0].astype(int) - clockwise).mean() < 1
