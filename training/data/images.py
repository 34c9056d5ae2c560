"""Read one picture, and refuse files that are damaged: decoders fill the missing part with gray and say nothing."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from .errors import VideoError
from .video import MAX_SIDE, Size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_image(path: Path) -> np.ndarray:
    """Return the picture as uint8 (H, W, 3) RGB, upright, on white where it is transparent.

    Raises ``VideoError`` with one sentence for what is not a whole picture.
    """
    from PIL import Image, ImageFile, ImageOps

    try:
        data = path.read_bytes()
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions.") from error
    if not data:
        raise VideoError(f"{path}: the file is empty; replace it.")
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                _check_size(path, image.size)
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # phones add a small second picture
                    raise VideoError(f"{path}: holds {image.n_frames} pictures; save one, or the whole as a video.")
                image.load()
                upright = ImageOps.exif_transpose(image)
                if image.format in ("JPEG", "MPO"):
                    _check_jpeg(path, data)
                return _rgb(upright)
    except VideoError:
        raise
    except Image.UnidentifiedImageError:
        raise VideoError(f"{path}: not a readable image; replace it.") from None
    except (OSError, ValueError, SyntaxError, KeyError, IndexError, ArithmeticError, MemoryError) as error:
        raise VideoError(f"{path}: the image is damaged ({_reason(error)}); replace it.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise VideoError(f"{path}: the image claims more pixels than is sensible; make it smaller.") from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def image_size(path: Path) -> Size:
    """Return a picture's (height, width), upright; raises ``VideoError`` for what is not a whole picture."""
    return read_image(path).shape[:2]


def resized(image: np.ndarray, sizes: Sequence[Size]) -> list[np.ndarray]:
    """Return the picture at each of ``sizes``, by the filters that video is resized with."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    out = []
    for height, width in sizes:
        way = "AREA" if height < frame.height else "BICUBIC"
        out.append(frame.reformat(width=width, height=height, interpolation=way).to_ndarray())
    return out


def _check_size(path: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width > MAX_SIDE or height > MAX_SIDE:
        raise VideoError(f"{path}: the picture is {width} x {height}, more than {MAX_SIDE} a side; make it smaller.")


def _check_jpeg(path: Path, data: bytes) -> None:
    """Refuse a JPEG whose coded data is broken in the middle, which libjpeg only warns about."""
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]  # what follows the picture is not looked at
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: the image is damaged ({_reason(error)}); replace it.") from error
    if not frames or any(frame.is_corrupt for frame in frames):
        raise VideoError(f"{path}: the image is damaged (its data break off); replace it.")


def _rgb(image) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I;16"):
        gray = (np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits; save it with 8 or 16 a channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, layered).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].rstrip(".")
