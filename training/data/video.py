"""Decode one video file to uint8 frames at a chosen rate and chosen sizes, and refuse files that do not decode fully.

Decoders hide damage: they stop early, skip packets or repeat a picture. A clip counts as read only if every frame
that the container announces came out and none was marked corrupt; anything else is a ``VideoError``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from .errors import VideoError
from .scenes import Signature, find_cuts, signature

Size = tuple[int, int]
MAX_SIDE = 16384  # pixels; what claims more is damaged, and would take all memory
SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".ts")

_BT601, _BT709 = 5, 1  # FFmpeg's AVColorSpace numbers
_UNSPECIFIED = 2
_HD_HEIGHT = 720  # players take untagged video of this height or more as BT.709


@dataclass(frozen=True)
class Clip:
    """A decoded clip: ``frames[i]`` is uint8 (T, H_i, W_i, 3) RGB for each requested size, all of equal T."""

    frames: tuple[np.ndarray | Kept, ...]
    fps: float
    source_fps: float
    source_frames: int
    source_size: Size

    @property
    def length(self) -> int:
        return len(self.frames[0])


class Kept:
    """Some frames of a clip by number: ``kept[a:b]`` is uint8 (b - a, H, W, 3) if all of them were kept."""

    def __init__(self, length: int, images: dict[int, np.ndarray]) -> None:
        self._length, self._images = length, images

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, window: slice) -> np.ndarray:
        return np.stack([self._images[number] for number in range(*window.indices(self._length))])


@dataclass(frozen=True)
class Scan:
    """What a whole pass over a clip tells: its frames at the wanted rate, as displayed, and where hard cuts are.

    A cut is the number of the first frame after it.
    """

    length: int
    size: Size
    source_frames: int
    cuts: tuple[int, ...] = ()


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
    start: float = 0.0,
    end: float | None = None,
    keep: Sequence[Collection[int]] | None = None,
) -> Clip:
    """Return a clip at ``fps`` (None: its own rate) and at each of ``sizes`` (None: its own size).

    Frames are picked by nearest timestamp, so 25 -> 16 fps keeps the speed of the motion. ``sizes`` may be a function
    of the source's (height, width), as displayed: a phone's upright clip is upright. ``start`` and ``end`` (seconds)
    choose a piece. ``keep`` names, per size, the numbers of the only frames that are kept; decoding ends after the
    last of them, so it is for clips that were scanned. Raises ``VideoError`` for a missing, empty, truncated or damaged
    file, and for one that takes more than ``limit`` bytes once decoded.
    """
    path = Path(path)
    out = _Collector(path, sizes, limit, keep)
    read = _Pass(path, fps, start, end)
    for frame, times, decoded in read:
        out.add(frame, times, decoded)
        if out.complete:
            break
    return Clip(out.stacked(), fps or read.rate, read.rate, read.decoded, out.source)


def scan_clip(
    path: str | Path, *, fps: float, start: float = 0.0, end: float | None = None, scene_cuts: bool = False
) -> Scan:
    """Return what a pass over all of a clip tells, keeping no picture; raises ``VideoError`` as ``read_clip`` does."""
    read = _Pass(Path(path), fps, start, end)
    length, size = 0, (0, 0)
    signatures: list[tuple[int, Signature]] = []
    for frame, times, _ in read:
        if length == 0:
            size = _displayed(frame)
        if scene_cuts:
            signatures.append((length, signature(frame)))
        length += times
    return Scan(length, size, read.decoded, find_cuts(signatures))


class _Pass:
    """One decoding of a file: iterate for (frame, how many times it is shown, frames decoded so far)."""

    def __init__(self, path: Path, fps: float | None, start: float, end: float | None) -> None:
        self.path, self.fps, self.start, self.end = path, fps, start, end
        self.decoded, self.rate = 0, 0.0

    def __iter__(self) -> Iterator[tuple[VideoFrame, int, int]]:
        path, picker, first, last = self.path, _Picker(self.fps), None, 0.0
        with _open(path) as container:
            stream = _stream(container, path)
            promised, self.rate = stream.frames, _rate(stream)
            try:
                for frame in container.decode(stream):
                    if frame.is_corrupt:
                        raise VideoError(
                            f"{path}: frame {self.decoded} is damaged; re-encode or replace the file.",
                            decoded=self.decoded,
                        )
                    if max(frame.width, frame.height) > MAX_SIDE:
                        raise VideoError(f"{path}: {_absurd(frame.width, frame.height)}", decoded=self.decoded)
                    time = float(frame.pts * frame.time_base) if frame.pts is not None else self.decoded / self.rate
                    first = time if first is None else first
                    last = time - first
                    self.decoded += 1
                    if last >= self.start - 1e-6 and (self.end is None or last < self.end - 1e-6):
                        for kept, times in picker.push(frame, time):
                            yield kept, times, self.decoded
                for kept, times in picker.finish():
                    yield kept, times, self.decoded
            except (av.error.FFmpegError, ValueError) as error:
                if isinstance(error, VideoError):
                    raise
                raise VideoError(
                    f"{path}: decoding stopped after {self.decoded} of {promised or 'an unknown number of'} frames"
                    f" ({_reason(error)}); re-encode or replace the file.",
                    decoded=self.decoded,
                ) from error
            promised = promised or _announced_by_duration(container, stream, self.rate)
        if self.decoded == 0:
            raise VideoError(f"{path}: no frame could be decoded; re-encode or replace the file.")
        if self.decoded < promised:
            raise VideoError(
                f"{path}: the file announces {promised} frames but only {self.decoded} decode; it is truncated or"
                " damaged, re-encode or replace it.",
                decoded=self.decoded,
            )
        seconds = last + 1 / self.rate
        if self.start >= seconds or (self.end is not None and self.end > seconds + 1 / self.rate):
            name, value = ("start", self.start) if self.start >= seconds else ("end", self.end)
            raise VideoError(f"{path}: {name} is {value:g}, but the clip is {seconds:.2f} seconds long; correct it.")


class _Collector:
    """The frames that are kept, at every size; sizes and turn are settled by the first of them."""

    def __init__(
        self,
        path: Path,
        sizes: Sequence[Size] | Callable[[Size], Sequence[Size]] | None,
        limit: int | None,
        keep: Sequence[Collection[int]] | None,
    ) -> None:
        self.path, self.limit = path, limit
        self.source: Size = (0, 0)
        self._sizes, self._keep = sizes, keep
        self._last = max((max(numbers, default=-1) for numbers in keep), default=-1) if keep is not None else None
        self._wanted: list[Size] = []
        self._images: list[dict[int, np.ndarray]] = []
        self._length = 0
        self._bytes = 0

    @property
    def complete(self) -> bool:
        """True if no later frame is wanted."""
        return self._last is not None and self._length > self._last

    def add(self, frame: VideoFrame, times: int, decoded: int) -> None:
        """Take ``frame`` as the next ``times`` frames of the clip."""
        if not self._images:
            self.source = _displayed(frame)
            if self._sizes is None:
                self._wanted = [self.source]
            else:
                self._wanted = list(self._sizes(self.source) if callable(self._sizes) else self._sizes)
            self._images = [{} for _ in self._wanted]
        numbers = range(self._length, self._length + times)
        self._length += times
        chosen = [[n for n in numbers if self._keep is None or n in self._keep[i]] for i in range(len(self._wanted))]
        sizes = [size for size, which in zip(self._wanted, chosen, strict=True) if which]
        made = iter(_convert(frame, sizes, _turns(frame)))
        for images, which in zip(self._images, chosen, strict=True):
            if which:
                image = next(made)
                self._bytes += image.nbytes * (len(which) if self._keep is None else 1)
                images.update(dict.fromkeys(which, image))
        if self.limit is not None and self._bytes > self.limit:
            raise VideoError(
                f"{self.path}: more than {self.limit / 2**30:.3g} GiB once decoded; cut the video into shorter clips.",
                decoded=decoded,
            )

    def stacked(self) -> tuple[np.ndarray | Kept, ...]:
        """Return one array (T, H, W, 3) per size, or the frames that were kept."""
        if self._keep is not None:
            return tuple(Kept(self._length, images) for images in self._images)
        return tuple(np.stack([images[number] for number in range(self._length)]) for images in self._images)


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
    try:
        if not path.is_file():
            raise VideoError(f"{path}: no such file; check the path.")
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty; replace it.")
        return av.open(str(path))
    except VideoError:
        raise
    except PermissionError:
        raise VideoError(f"{path}: cannot be read (Permission denied); check its permissions.") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({_reason(error)}); re-encode or replace it.") from error


def _stream(container: av.container.InputContainer, path: Path) -> av.video.stream.VideoStream:
    if not container.streams.video:
        raise VideoError(f"{path}: the file holds no video stream; replace it.")
    stream = container.streams.video[0]
    if not stream.codec_context.height or not stream.codec_context.width:
        raise VideoError(f"{path}: the video stream has no picture size, so the file is damaged; replace it.")
    width, height = stream.codec_context.width, stream.codec_context.height
    if max(width, height) > MAX_SIDE:
        raise VideoError(f"{path}: {_absurd(width, height)}")
    return stream


def _absurd(width: int, height: int) -> str:
    return f"the picture is {width} x {height}, more than {MAX_SIDE} a side; the file is damaged, or make it smaller."


def _turns(frame: VideoFrame) -> int:
    return round(getattr(frame, "rotation", 0) / 90) % 4  # PyAV 14 or newer tells


def _displayed(frame: VideoFrame) -> Size:
    return (frame.height, frame.width) if _turns(frame) % 2 == 0 else (frame.width, frame.height)


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
