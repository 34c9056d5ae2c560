"""Decode one video file to uint8 frames at a chosen rate and chosen sizes, and refuse files that do not decode fully.

Decoders hide damage: they stop early, skip packets or repeat a picture. A clip counts as read only if every frame
that the container announces came out and none was marked corrupt; anything else is a ``VideoError``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from .errors import VideoError

Size = tuple[int, int]
SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts")

_BT601, _BT709 = 5, 1  # FFmpeg's AVColorSpace numbers
_UNSPECIFIED = 2
_HD_HEIGHT = 720  # players take untagged video of this height or more as BT.709


@dataclass(frozen=True)
class Clip:
    """A decoded clip: ``frames[i]`` is uint8 (T, H_i, W_i, 3) RGB for each requested size, all of equal T."""

    frames: tuple[np.ndarray, ...]
    fps: float
    source_fps: float
    source_frames: int
    source_size: Size

    @property
    def length(self) -> int:
        return len(self.frames[0])


@dataclass(frozen=True)
class Probe:
    """What a container says about its first video stream; ``frames`` is 0 if it does not say."""

    frames: int
    fps: float
    size: Size


def cover_size(source: Size, height: int, width: int, scale: float = 1.0) -> Size:
    """Return the even (height, width), of the source's aspect, that covers ``height`` x ``width`` times ``scale``."""
    factor = max(height / source[0], width / source[1]) * scale
    return max(height, 2 * round(source[0] * factor / 2)), max(width, 2 * round(source[1] * factor / 2))


def probe(path: str | Path) -> Probe:
    """Return the announced frame count, rate and (height, width). Raises ``VideoError`` for what is not a video."""
    with _open(Path(path)) as container:
        stream = _stream(container, Path(path))
        return Probe(stream.frames, _rate(stream), (stream.codec_context.height, stream.codec_context.width))


def read_clip(
    path: str | Path,
    *,
    fps: float | None = None,
    sizes: Sequence[Size] | Callable[[Size], Sequence[Size]] | None = None,
    limit: int | None = None,
) -> Clip:
    """Return all of a clip at ``fps`` (None: its own rate) and at each of ``sizes`` (None: its own size).

    Frames are picked by nearest timestamp, so 25 -> 16 fps keeps the speed of the motion. ``sizes`` may be a function
    of the source's (height, width), as displayed: a phone's upright clip is upright. Raises ``VideoError`` for a
    missing, empty, truncated or damaged file, and for one that takes more than ``limit`` bytes once decoded.
    """
    path = Path(path)
    count = 0
    out = _Collector(path, sizes, limit)
    with _open(path) as container:
        stream = _stream(container, path)
        promised, rate = stream.frames, _rate(stream)
        picker = _Picker(fps)
        try:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoError(f"{path}: frame {count} is damaged; re-encode or replace the file.", decoded=count)
                time = float(frame.pts * frame.time_base) if frame.pts is not None else count / rate
                count += 1
                for kept, times in picker.push(frame, time):
                    out.add(kept, times, count)
            for kept, times in picker.finish():
                out.add(kept, times, count)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, VideoError):
                raise
            raise VideoError(
                f"{path}: decoding stopped after {count} of {promised or 'an unknown number of'} frames"
                f" ({_reason(error)}); re-encode or replace the file.",
                decoded=count,
            ) from error
        promised = promised or _announced_by_duration(container, stream, rate)
    if count == 0:
        raise VideoError(f"{path}: no frame could be decoded; re-encode or replace the file.")
    if count < promised:
        raise VideoError(
            f"{path}: the file announces {promised} frames but only {count} decode; it is truncated or damaged,"
            " re-encode or replace it.",
            decoded=count,
        )
    return Clip(out.stacked(), fps or rate, rate, count, out.source)


class _Collector:
    """The frames that are kept, at every size; sizes and turn are settled by the first of them."""

    def __init__(
        self, path: Path, sizes: Sequence[Size] | Callable[[Size], Sequence[Size]] | None, limit: int | None
    ) -> None:
        self.path, self.limit = path, limit
        self.source: Size = (0, 0)
        self._sizes = sizes
        self._turns = 0
        self._wanted: list[Size] = []
        self._images: list[list[np.ndarray]] = []
        self._bytes = 0

    def add(self, frame: VideoFrame, times: int, decoded: int) -> None:
        """Keep ``frame`` ``times`` times."""
        if not self._images:
            self._turns = round(getattr(frame, "rotation", 0) / 90) % 4  # PyAV 14 or newer tells
            self.source = (frame.height, frame.width) if self._turns % 2 == 0 else (frame.width, frame.height)
            if self._sizes is None:
                self._wanted = [self.source]
            else:
                self._wanted = list(self._sizes(self.source) if callable(self._sizes) else self._sizes)
        images = _convert(frame, self._wanted, self._turns)
        self._bytes += times * sum(image.nbytes for image in images)
        if self.limit is not None and self._bytes > self.limit:
            raise VideoError(
                f"{self.path}: more than {self.limit / 2**30:.3g} GiB once decoded; cut the video into shorter clips.",
                decoded=decoded,
            )
        self._images.extend([images] * times)

    def stacked(self) -> tuple[np.ndarray, ...]:
        """Return one array (T, H, W, 3) per size."""
        return tuple(np.stack([images[i] for images in self._images]) for i in range(len(self._wanted)))


class _Picker:
    """Nearest-timestamp resampling of a stream: emits (frame, how many times) once its neighbor is known."""

    def __init__(self, fps: float | None) -> None:
        self.fps = fps
        self.start = 0.0
        self.last: tuple[VideoFrame, float] | None = None
        self.emitted = 0

    def push(self, frame: VideoFrame, time: float) -> list[tuple[VideoFrame, int]]:
        if self.fps is None:
            return [(frame, 1)]
        if self.last is None:
            self.start, self.last = time, (frame, 0.0)
            return []
        previous, before = self.last
        now = max(time - self.start, before)  # a clock that runs backwards counts as standing still
        times = self._due((before + now) / 2)
        self.last = (frame, now)
        return [(previous, times)] if times else []

    def finish(self) -> list[tuple[VideoFrame, int]]:
        if self.fps is None or self.last is None:
            return []
        frame, now = self.last
        times = max(self._due(now + 1e-9), 1 if self.emitted == 0 else 0)
        return [(frame, times)] if times else []

    def _due(self, until: float) -> int:
        """Count the output instants up to ``until`` seconds that have not been emitted yet."""
        due = math.floor(until * self.fps + 1e-6) + 1 - self.emitted
        self.emitted += max(due, 0)
        return max(due, 0)


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise VideoError(f"{path}: no such file; check the path.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty; replace it.")
    try:
        return av.open(str(path))
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({_reason(error)}); re-encode or replace it.") from error


def _stream(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    if not container.streams.video:
        raise VideoError(f"{path}: the file holds no video stream; replace it.")
    stream = container.streams.video[0]
    if not stream.codec_context.height or not stream.codec_context.width:
        raise VideoError(f"{path}: the video stream has no picture size, so the file is damaged; replace it.")
    return stream


def _rate(stream: av.video.stream.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _announced_by_duration(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, rate: float
) -> int:
    """Return the frames that must be there by the announced duration, less a margin for rounding; 0 if unknown."""
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / av.time_base
    else:
        return 0
    return max(0, math.floor(seconds * rate * 0.98) - 2)


def _convert(frame: VideoFrame, sizes: Sequence[Size], turns: int) -> list[np.ndarray]:
    """Return ``frame`` as RGB at each of ``sizes``, turned counter-clockwise by ``turns`` quarters for display."""
    if frame.colorspace in (_UNSPECIFIED, 0):
        matrix = _BT709 if frame.height >= _HD_HEIGHT else _BT601
    else:
        matrix = int(frame.colorspace)
    images = []
    for size in sizes:
        height, width = size if turns % 2 == 0 else size[::-1]
        image = frame.reformat(
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=matrix,
            interpolation="AREA" if height < frame.height else "BICUBIC",
        )
        images.append(np.rot90(image.to_ndarray(), turns) if turns else image.to_ndarray())
    return images


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
