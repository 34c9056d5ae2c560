"""What an MSFP file takes: its size, load time and resident memory, beside the same model in bf16 and the stock loader.

Run it as ``COMFYUI_PATH=... COMFYUI_PYTHON=... python tests/host/measure_msfp_memory.py`` from the pack's folder, with
the pack on the path. It writes two files of a random model of Wan2.1 1.3B's shape (3.6 GB) into a temporary folder, and
loads each in a process of its own, on the processor. The files have just been written, so load times are those of a
warm file cache. The size of a 14B file is computed from shapes alone, on the meta device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import conftest
from fpsattention.kernels.checkpoint import write_streamed
from fpsattention.kernels.msfp.file import PackedLayer, write_msfp
from fpsattention.kernels.msfp.formats import E2M1
from fpsattention.kernels.msfp.inputs import DYNAMIC, InputQuantizer
from fpsattention.kernels.msfp.packing import packed_width
from fpsattention.kernels.msfp.weights import PackedWeight, WeightFormat
from fpsattention.training.comfy_host import find_checkout, host_environment
from fpsattention.training.names import WanShape

SMALL, LARGE = WanShape.of_kind("t2v", 1536, 8960, 30), WanShape.of_kind("t2v", 5120, 13824, 40)
FORMAT = WeightFormat(E2M1, 64)
BF16 = torch.bfloat16


def is_packed(name: str, shape: tuple[int, ...]) -> bool:
    """All linear layers of the blocks."""
    return name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2


def sizes(shape: WanShape) -> dict[str, int]:
    """Return the bytes of the model's tensors in bf16 and packed, from tensors without storage."""
    tensors = {name: torch.empty(size, device="meta", dtype=BF16) for name, size in shape.tensors().items()}
    wide = sum(t.nbytes for t in tensors.values())
    packed = 0
    for name, tensor in tensors.items():
        if not is_packed(name, tuple(tensor.shape)):
            packed += tensor.nbytes
            continue
        rows, columns = tensor.shape
        codes = torch.empty(rows, packed_width(columns, FORMAT.form.bits), device="meta", dtype=torch.uint8)
        packed += codes.nbytes + torch.empty(FORMAT.scale_shape(rows, columns), device="meta", dtype=BF16).nbytes
    return {"bf16": wide, "msfp": packed, "numbers": sum(t.numel() for t in tensors.values())}


def write_files(folder: Path) -> None:
    """Write the random model in both forms, a tensor at a time."""
    generator = torch.Generator().manual_seed(0)
    tensors = SMALL.tensors()

    def random(size: tuple[int, ...]) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * 0.02).to(BF16)

    write_streamed(
        folder / "wide.safetensors", {name: (BF16, size) for name, size in tensors.items()},
        ((name, random(size)) for name, size in tensors.items()),
    )  # fmt: skip
    packed = {name.removesuffix(".weight"): size for name, size in tensors.items() if is_packed(name, size)}
    plain = {name: size for name, size in tensors.items() if not is_packed(name, size)}
    rounding = InputQuantizer(E2M1, DYNAMIC, 1.0)

    def parts() -> Iterator[tuple[str, torch.Tensor | PackedWeight]]:
        for name, size in plain.items():
            yield name, random(size)
        for name, (rows, columns) in packed.items():
            width = packed_width(columns, FORMAT.form.bits)
            codes = torch.randint(0, 256, (rows, width), generator=generator, dtype=torch.uint8)
            scale = torch.full(FORMAT.scale_shape(rows, columns), 0.005, dtype=BF16)
            yield name, PackedWeight(codes, scale, None, FORMAT, columns)

    write_msfp(
        folder / "packed.safetensors", {name: PackedLayer(FORMAT, size[1], rounding) for name, size in packed.items()},
        {name: size[0] for name, size in packed.items()}, {name: (BF16, size) for name, size in plain.items()}, parts(),
        scale_dtype=BF16, fingerprint="random",
    )  # fmt: skip


def measured(checkout: Path, file: Path, loader: str) -> dict:
    """Return what a fresh process of the host says of loading ``file``."""
    env = host_environment(conftest.PACK) | {
        "FPS_PACK": str(conftest.PACK),
        "FPS_FILE": str(file),
        "FPS_LOADER": loader,
    }
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", conftest._SCRIPT, str(conftest.INSIDE), "fps_measure_msfp"]
    done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FPS-RESULT ")]
    if not lines:
        sys.exit(f"{loader}: no result\n{done.stderr[-3000:]}")
    result = json.loads(lines[-1].removeprefix("FPS-RESULT "))["load"]
    return result if "error" not in result else sys.exit(result["error"])


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def main() -> int:
    checkout = find_checkout(conftest.PACK)
    if checkout is None:
        sys.exit("set COMFYUI_PATH to a ComfyUI checkout")
    for name, shape in (("1.3B", SMALL), ("14B", LARGE)):
        found = sizes(shape)
        print(
            f"{name}, {found['numbers'] / 1e9:.2f} billion numbers: bf16 {gigabytes(found['bf16'])}, MSFP (e2m1, "
            f"groups of 64, bf16 scales) {gigabytes(found['msfp'])}, {found['msfp'] / found['bf16']:.1%}"
        )
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for name, loader in (("packed", "msfp"), ("wide", "stock")):
            file = Path(folder) / f"{name}.safetensors"
            found = measured(checkout, file, loader)
            before = found["before"]
            print(
                f"\n{loader}: file {gigabytes(file.stat().st_size)}, model {gigabytes(found['told'])}, {found['dtype']}"
            )
            for what, seconds in (("loaded", found["load_seconds"]), ("called", found["call_seconds"])):
                more = {key: gigabytes(found[what][key] - before[key]) for key in ("resident", "own", "mapped", "peak")}
                print(f"  {what} in {seconds:.1f} s: " + ", ".join(f"{key} {size}" for key, size in more.items()))
            print("\n".join(found["text"].splitlines()[:5]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
