"""Reads a Wan file into a model, exports it again, and tells the peak memory beyond the model and the times.

python tests/training/measure_weights.py KIND DIM FFN LAYERS [FOLDER]

A file of random bf16 weights is written to FOLDER (default: a temporary one) and removed. Memory is the process's
resident set, file pages included, as the system counts it. One JSON line.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from fpsattention.kernels.checkpoint import write_streamed
from fpsattention.training.export_file import export
from fpsattention.training.model import load_model
from fpsattention.training.names import PREFIX, WanShape
from safetensors import safe_open


class Peak:
    """The largest resident set inside the block, beyond what was there before, sampled every few milliseconds."""

    def __enter__(self) -> Peak:
        self._before = self._largest = _resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._start = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.monotonic() - self._start
        self._ended.set()
        self._thread.join()
        self.added = self._largest - self._before

    def _watch(self) -> None:
        while not self._ended.wait(0.003):
            self._largest = max(self._largest, _resident())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def random_weights(shape: WanShape, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield random bf16 weights with ComfyUI's prefix, one at a time."""
    for i, (name, size) in enumerate(shape.tensors().items()):
        generator = torch.Generator().manual_seed(seed + i)
        bits = torch.randint(0, 1 << 14, size, dtype=torch.int16, generator=generator)  # bf16 from 2^-63 to 2^64
        yield PREFIX + name, (bits + (1 << 13)).view(torch.bfloat16)


def measure(shape: WanShape, folder: Path) -> dict:
    """Return what a round trip of a model of this shape comes to; raises AssertionError if one bit changes."""
    source, result = folder / "source.safetensors", folder / "result.safetensors"
    layout = {PREFIX + name: (torch.bfloat16, size) for name, size in shape.tensors().items()}
    write_streamed(source, layout, random_weights(shape))
    with Peak() as reading:
        model = load_model(source)
    held = sum(parameter.nbytes for parameter in model.parameters())
    with Peak() as writing:
        export(model, result, dtype="bf16")
    del model
    with safe_open(result, "pt") as file:
        names = set(file.keys())
    assert names == set(shape.tensors())
    for name in names:
        with safe_open(source, "pt") as one, safe_open(result, "pt") as other:
            a, b = one.get_tensor(PREFIX + name), other.get_tensor(name)
            assert torch.equal(a.view(torch.int16), b.view(torch.int16)), name
    return {
        "kind": shape.kind,
        "parameters": shape.parameters,
        "tensors": len(names),
        "model_mib": held >> 20,
        "reading_beyond_model_mib": (reading.added - held) >> 20,
        "writing_mib": writing.added >> 20,
        "reading_seconds": round(reading.seconds, 2),
        "writing_seconds": round(writing.seconds, 2),
        "file_mib": source.stat().st_size >> 20,
        "bit_identical": True,
    }


def main() -> None:
    torch.set_num_threads(1)
    kind, *numbers = sys.argv[1:5]
    shape = WanShape.of_kind(kind, *map(int, numbers))
    folder = Path(tempfile.mkdtemp(dir=sys.argv[5] if len(sys.argv) > 5 else None))
    try:
        print("RESULT", json.dumps(measure(shape, folder)), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
