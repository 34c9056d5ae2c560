"""Fetches what the benchmark can use beside torch, as trimmed wheels, for a machine without network; unpacks it there.

    python tests/gpu/wheels.py                      download and trim into .wheels/
    python tests/gpu/wheels.py --unpack FOLDER      unpack .wheels/ into FOLDER, which then goes onto PYTHONPATH

For Python 3.12 on Linux x86-64. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import fnmatch
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".wheels"
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64", "any"]


@dataclass(frozen=True)
class Wheel:
    """A wheel: what it is for, and the files that are left out of it."""

    name: str
    version: str
    purpose: str
    without: tuple[str, ...] = ()


WHEELS = [
    Wheel("diffusers", "0.39.0", "the whole-step benchmark"),
    Wheel("importlib-metadata", "8.7.0", "diffusers needs it"),
    Wheel("torchao", "0.18.0", "FP8 linear layers of the whole step"),
    Wheel("sageattention", "1.0.6", "peer: INT8 attention in Triton"),
    # Its compiled library is for one version of torch, and its Triton kernels are what is compared.
    Wheel("fastvideo-kernel", "0.3.5", "peer: VSA and STA in Triton", ("*.so", "*.so.*", "attn_qat_infer/*")),
    Wheel("comfy-kitchen", "0.2.40", "peer: sol_attn and INT8 attention", ("*/hip/_C*",)),
]  # fmt: skip


def download(wheel: Wheel, folder: Path) -> Path:
    """Return the path of the downloaded wheel in ``folder``; raises RuntimeError with pip's last line."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp"]
    command += [part for abi in ("cp312", "abi3", "none") for part in ("--abi", abi)]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    command += ["--dest", str(folder), f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob(f"{wheel.name.replace('-', '_')}-*.whl"))
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise RuntimeError(f"{wheel.name} {wheel.version} cannot be downloaded: {lines[-1]}")
    return found[0]


def trim(source: Path, target: Path, without: tuple[str, ...]) -> None:
    """Write ``source`` to ``target`` without the files that match one of ``without``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for entry in old.infolist():
            if not any(fnmatch.fnmatch(entry.filename, pattern) for pattern in without):
                new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED, 9)


def fetch(folder: Path) -> int:
    """Download and trim every wheel into ``folder``, print the sizes and return 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS:
        target = folder / f"{wheel.name.replace('-', '_')}-{wheel.version}.trimmed.whl"
        if not target.exists():
            with tempfile.TemporaryDirectory() as temporary:
                trim(download(wheel, Path(temporary)), target, wheel.without)
        print(f"{target.stat().st_size / 2**20:7.2f} MiB  {wheel.name} {wheel.version}: {wheel.purpose}")
    return 0


def unpack(folder: Path, target: Path) -> int:
    """Unpack every wheel of ``folder`` into ``target`` and say what to put onto PYTHONPATH."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        print(f"there are no wheels in {folder}; run this script without --unpack first", file=sys.stderr)
        return 2
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    print(f"export PYTHONPATH={target}")
    return 0


def main() -> int:
    """Fetch or unpack, as the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the wheels are (default .wheels)")
    parser.add_argument("--unpack", type=Path, metavar="FOLDER", help="unpack them into this folder instead")
    options = parser.parse_args()
    try:
        return unpack(options.folder, options.unpack) if options.unpack else fetch(options.folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
