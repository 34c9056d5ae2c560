"""Running the study of head patterns: the base, its data, every question, the results as one JSON file."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path

import torch

from ..config import ConfigError, ModelSection
from ..distributed import World
from ..files import file_sha256
from ..model import starting_model
from ..prepare import prepare_data
from .cli import Say
from .heads import HELD_OUT, SEEDS, SHIFT, STEPS, HeadStudy, run_heads
from .runner import commit, latents_digest, machine, study_config
from .sizes import Size
from .work import Deadline, OutOfTimeError, device_of


def run_heads_study(size: Size, budget: float | None, base: Path | None, cache: Path, results: Path) -> bool:
    """Ask what was not asked before and write ``results``; return False if the time was over before the end.

    Raises DataError without clips and ConfigError without a base.
    """
    say, stop = Say(), Deadline(budget)
    config = study_config(size)
    base = base or Path(config.output.dir) / f"{config.output.name}.safetensors"
    if not base.is_file():
        raise ConfigError(f"{base}: no such base; run `make study-base` first, or give --base")
    data = prepare_data(config, World(), progress=False)
    digest = file_sha256(base)
    model = starting_model(ModelSection(path=str(base)), 0).to(device_of(config)).eval().requires_grad_(False)
    shared = {"base": digest, "latents": latents_digest(data.val), "steps": STEPS, "shift": SHIFT, "held_out": HELD_OUT}
    study = HeadStudy(size, model, data.val, data.train[0]["text"], cache / f"heads-{size.name}", shared, stop, say)
    facts = {
        "base": digest, "layers": study.layers, "heads": study.heads, "tokens": study.grid.tokens,
        "tiles": study.tiling.count, "steps": STEPS, "shift": SHIFT, "seeds": len(SEEDS), "held_out": HELD_OUT,
        "torch": torch.__version__, "machine": machine(), "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }  # fmt: skip
    with stop.on_signals():
        try:
            found = run_heads(study, facts)
        except OutOfTimeError:
            say("the time is over; call again to go on")
            return False
    results.parent.mkdir(parents=True, exist_ok=True)
    partial = results.with_name(f".{results.name}.{os.getpid()}")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, results)
    return True
