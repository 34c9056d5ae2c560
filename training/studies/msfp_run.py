"""Running the study of MSFP: the base, its data, every question, the results as one JSON file."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import torch

from ...kernels.whole_file import write_whole
from ..config import ConfigError
from ..distributed import World
from ..files import file_sha256
from ..prepare import prepare_data
from .cli import Say
from .msfp import CALIBRATION, HELD_OUT, HUB, RANK, RATE, SAMPLING_STEPS, SEEDS, STEPS, VIDEOS, MsfpStudy, run_msfp
from .runner import commit, latents_digest, machine, study_config
from .sizes import Size
from .work import Deadline, OutOfTimeError


def run_msfp_study(size: Size, budget: float | None, base: Path | None, cache: Path, results: Path) -> bool:
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
    shared = {
        "base": digest, "latents": latents_digest(data.val), "calibration": CALIBRATION, "held_out": HELD_OUT,
        "videos": VIDEOS, "sampling_steps": SAMPLING_STEPS,
    }  # fmt: skip
    study = MsfpStudy(config, base, data.train, data.val, cache / f"msfp-{size.name}", shared, stop, say)
    facts = {
        **shared, "held_out": len(study.held_out), "steps": STEPS, "rate": RATE, "rank": RANK, "hub": HUB,
        "seeds": len(SEEDS), "batch": config.optim.samples, "shift": config.flow.shift, "torch": torch.__version__,
        "machine": machine(), "collected_at_commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }  # fmt: skip
    with stop.on_signals():
        try:
            found = run_msfp(study, facts)
        except OutOfTimeError:
            say("the time is over; call again to go on")
            return False
    write_whole(results, (json.dumps(found, indent=1) + "\n").encode())
    return True
