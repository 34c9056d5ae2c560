"""Loads one file as its loader does and says what that took: seconds, and resident memory as the system counts it.

``FPS_FILE`` names the file, ``FPS_LOADER`` is msfp or stock.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import torch
from fps_common import load_pack, run_cases

_WANTED = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped"}


def memory() -> dict[str, int]:
    """Return the process's memory in bytes: the most so far, now, and of that its own and what files are mapped."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {_WANTED[words[0][:-1]]: 1024 * int(words[1]) for words in lines if words and words[0][:-1] in _WANTED}


def case_load() -> dict:
    """Memory before, after loading, and after one call of the model, with the time of each."""
    path = Path(os.environ["FPS_FILE"])
    loaders = load_pack()
    folder_paths.add_model_folder_path("diffusion_models", str(path.parent))
    before, start = memory(), time.perf_counter()
    if os.environ["FPS_LOADER"] == "msfp":
        found = loaders["FPSAttentionLoadMsfp"].execute(model_name=path.name, activations="as trained").result
        model, text = found[0], found[2]
    else:
        model, text = comfy.sd.load_diffusion_model(str(path)), ""
    comfy.model_management.load_models_gpu([model])
    loaded, seconds = memory(), time.perf_counter() - start
    start = time.perf_counter()
    dtype = model.model.get_dtype_inference()
    x, context = torch.randn(1, 16, 1, 8, 8, dtype=dtype), torch.randn(1, 8, 4096, dtype=dtype)
    out = model.model.diffusion_model(x, torch.tensor([500.0]), context, transformer_options={})
    return {
        "before": before, "loaded": loaded, "load_seconds": seconds, "called": memory(),
        "call_seconds": time.perf_counter() - start, "finite": bool(out.isfinite().all()), "text": text,
        "told": model.model_size(), "dtype": str(dtype),
    }  # fmt: skip


run_cases(globals())
