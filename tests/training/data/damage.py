"""Damaged inputs of every kind, each made from small good files: a name, how it is made, and what is said of it."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .conftest import write_clip

CASES: dict[str, tuple] = {}


def case(name: str, says: str):
    """Register ``make(folder, good) -> path`` under the file name that it makes."""

    def register(make):
        CASES[name] = (make, says)
        return make

    return register


def _bytes(name: str, says: str, change) -> None:
    """Register a file made from the good clip's bytes."""

    def make(path: Path, good: dict[str, Path]) -> None:
        path.write_bytes(bytes(change(bytearray(good[path.suffix].read_bytes()))))

    CASES[name] = (make, says)


def _zeroed(data: bytearray) -> bytearray:
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    return data


def _noisy(data: bytearray) -> bytearray:
    middle = len(data) // 2
    data[middle : middle + 2000] = np.random.default_rng(1).bytes(2000)
    return data


def _swapped(data: bytearray, what: bytes, by: bytes) -> bytearray:
    at = data.rindex(what)
    data[at : at + len(by)] = by
    return data


_bytes("empty.mp4", "the file is empty", lambda data: b"")
_bytes("one byte.mp4", "not a readable video", lambda data: b"\0")
_bytes("header only.mp4", "not a readable video", lambda data: data[:32])
_bytes("no index.mp4", "not a readable video", lambda data: data[: len(data) // 2])
_bytes("index cut.mp4", "not a readable video|announces|decoding stopped|damaged", lambda data: data[:-200])
_bytes("front cut.mp4", "not a readable video", lambda data: data[len(data) // 3 :])
_bytes("cut at half.mkv", "announces|decoding stopped", lambda data: data[: len(data) // 2])
_bytes("cut late.mkv", "announces|decoding stopped", lambda data: data[: int(len(data) * 0.8)])
_bytes("cut at half.avi", "announces|decoding stopped|is damaged", lambda data: data[: len(data) // 2])
_bytes("random.mp4", "not a readable video", lambda data: np.random.default_rng(0).bytes(5000))
_bytes("text.mp4", "not a readable video", lambda data: b"Dear diary, today nothing was filmed.\n" * 60)
_bytes(
    "page.mp4", "not a readable video|no video stream", lambda data: b"<!DOCTYPE html><title>404 Not Found</title>" * 40
)
_bytes("zeros.mp4", "not a readable video", lambda data: bytes(8000))
_bytes("zeroed middle.mp4", "damaged|decoding stopped|announces", _zeroed)
_bytes("noise in the middle.mp4", "damaged|decoding stopped|announces", _noisy)
_bytes("broken.jpg", "the image is damaged", lambda data: _swapped(data, data[-900:-700], bytes(200)))
_bytes("cut.jpg", "the image is damaged", lambda data: data[: len(data) // 2])
_bytes("cut.png", "the image is damaged", lambda data: data[: len(data) // 2])
_bytes("bit flip.png", "the image is damaged", lambda data: _swapped(data, data[-600:-599], bytes([data[-600] ^ 1])))
_bytes("text.png", "not a readable image", lambda data: b"no picture\n" * 20)
_bytes("nothing.png", "the file is empty", lambda data: b"")


@case("absurd size.png", "more than 16384 a side|more pixels than is sensible")
def absurd_image(path: Path, good: dict[str, Path]) -> None:
    data = bytearray(good[".png"].read_bytes())
    data[16:24] = struct.pack(">II", 200_000, 200_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


@case("many.tif", "holds 2 pictures")
def several_pictures(path: Path, good: dict[str, Path]) -> None:
    with Image.open(good[".png"]) as image:
        image.save(path, save_all=True, append_images=[image.copy()])


@case("absurd size.avi", "more than 16384 a side|has no picture size")
def absurd_video(path: Path, good: dict[str, Path]) -> None:
    with av.open(str(path), "w") as container:  # unlike others, raw video has no size of its own beside the container's
        stream = container.add_stream("rawvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 8
    data[at + 4 : at + 12] = struct.pack("<ii", 60_000, 60_000)
    path.write_bytes(data)


@case("sound only.mp4", "no video stream")
def sound_only(path: Path, good: dict[str, Path]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


@case("no frames.avi", "no frame could be decoded|not a readable video|no video stream")
def no_frames(path: Path, good: dict[str, Path]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()


@case("tiny picture.mp4", "would be enlarged")
def too_small(path: Path, good: dict[str, Path]) -> None:
    write_clip(path, frames=8, height=4, width=4)


@case("too short.mp4", "do not hold one sample of 5")
def too_short(path: Path, good: dict[str, Path]) -> None:
    write_clip(path, frames=3)


@case("lies about its frames.avi", "announces|decoding stopped")
def lies(path: Path, good: dict[str, Path]) -> None:
    data = bytearray(good[".avi"].read_bytes())
    at = data.index(b"strh") + 8
    data[at + 32 : at + 36] = struct.pack("<I", 4000)
    at = data.index(b"idx1") if b"idx1" in data else len(data)
    path.write_bytes(data[:at])


@case("a folder.mp4", "a folder, not a file")
def folder(path: Path, good: dict[str, Path]) -> None:
    path.mkdir()


@case("dangling.mp4", "a link to nowhere.mp4, which is not there")
def dangling(path: Path, good: dict[str, Path]) -> None:
    path.symlink_to("nowhere.mp4")


@case("locked.mp4", "cannot be read .Permission denied")
def locked(path: Path, good: dict[str, Path]) -> None:
    path.write_bytes(good[".mp4"].read_bytes())
    path.chmod(0)


@case("pipe.mp4", "not an ordinary file")
def pipe(path: Path, good: dict[str, Path]) -> None:
    __import__("os").mkfifo(path)


@case("wrong caption.mp4", "the caption is not UTF-8")
def wrong_caption(path: Path, good: dict[str, Path]) -> None:
    path.write_bytes(good[".mp4"].read_bytes())
    path.with_suffix(".txt").write_bytes(b"caf\xe9")


def _line(name: str, says: str, line: str) -> None:
    """Register a line of the list; what is said names the list."""
    CASES[f"line: {name}"] = (line, says)


_line("not JSON", "the line is not JSON", '{"path": "good.mp4", ')
_line("a number", "the line is a number", "17")
_line("no path", "path is null", '{"caption": "x"}')
_line("a path of null characters", "path is", json.dumps({"path": "a\0b.mp4"}))
_line("unknown field", "unknown field 'cap'", '{"path": "good.mp4", "cap": "x"}')
_line("no such file", "no such file", '{"path": "gone.mp4"}')
_line("piece outside", "but the clip is", '{"path": "good.mp4", "start": 50, "end": 60}')
_line("piece too short", "do not hold one sample of 5", '{"path": "good.mp4", "start": 0.1, "end": 0.2}')
_line("infinite weight", "weight is Infinity", '{"path": "good.mp4", "weight": 1e999}')
