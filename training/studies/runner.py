"""Running the study: jobs in order until all are done or the time is over, then the results as one JSON file."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError, RunConfig
from ..config_file import load_config
from ..data.errors import DataError
from ..distributed import World
from ..files import file_sha256
from ..prepare import prepare_data
from .cli import PACK, Say, clips_folder
from .clips import present
from .plan import PARTS, Job, jobs
from .sizes import Size
from .store import Store
from .work import Deadline, OutOfTimeError, Work


def run_study(
    size: Size, parts: Sequence[str], budget: float | None, base: Path | None, cache: Path, results: Path
) -> bool:
    """Do the jobs of some parts and write ``results/<size>.json``; return False if the time was over before the end.

    Raises DataError without clips and ConfigError without a base.
    """
    say, stop = Say(), Deadline(budget)
    config = study_config(size)
    base = base or Path(config.output.dir) / f"{config.output.name}.safetensors"
    if not base.is_file():
        raise ConfigError(f"{base}: no such base; run `make study-base` first, or give --base")
    data = prepare_data(config, World(), progress=False)
    say(f"{len(data.train)} training and {len(data.val)} held-out samples of {data.grid.tokens} tokens")
    digest = file_sha256(base)
    store = Store(cache / size.name, size, {"base": digest, "latents": latents_digest(data.val)})
    work = Work(size, config, base, data.train, data.val, store, stop)
    todo, finished = jobs(size, parts), True
    with stop.on_signals():
        for number, job in enumerate(todo, 1):
            if work.done(job):
                continue
            try:
                result = work.do(job)
            except OutOfTimeError:
                say(f"the time is over at job {number} of {len(todo)}; call again to go on")
                finished = False
                break
            figure = f", loss {result['loss']:.4f}" if "loss" in result else ""
            say(f"{number}/{len(todo)} {job.key}{figure} ({result['seconds']:.0f} s)")
    facts = conditions(config, base, digest, len(data.train), len(work.held_out), work)
    write_results(store, jobs(size, PARTS), facts, results / f"{size.name}.json")
    return finished


def latents_digest(samples: Sequence[dict[str, Any]]) -> str:
    """Return what the held-out latents are, wherever they lie."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample["latent"].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def study_config(size: Size) -> RunConfig:
    """Return the base's configuration. Raises DataError, one sentence, where there is no clip."""
    folder = clips_folder()
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DataError(f"{folder}: no clips; run `python -m training.studies clips`, or set STUDY_CLIPS to a folder")
    os.environ.setdefault("STUDY_CLIPS", str(folder))
    return load_config(str(size.config), [])


def conditions(config: RunConfig, base: Path, digest: str, training: int, held_out: int, work: Work) -> dict[str, Any]:
    """Return under what the results were found."""
    journal = Path(config.output.dir) / "loss.jsonl"
    records = (
        [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.is_file() else []
    )
    curve = {r["step"] + 1: round(r["validation"], 5) for r in records if r.get("validation") is not None}
    seconds = sum(r["seconds"] for r in records)
    model = work.model(None)
    folder = clips_folder()
    return {
        "size": work.size.name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "torch": torch.__version__,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "clips": present(folder) or sorted(path.name for path in folder.iterdir()),
        "training_samples": training,
        "held_out_samples": held_out,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": work.grid.tokens,
        "batch": config.optim.samples,
        "base": {"sha256": digest, "steps": config.optim.steps, "rate": config.optim.lr, "held_out": curve,
                 "seconds": round(seconds), "start": Path(config.model.path or "random").name},
    }  # fmt: skip


def write_results(store: Store, todo: Sequence[Job], facts: dict[str, Any], path: Path) -> None:
    """Write every result that the cache has, by key, with the conditions."""
    found = {job.key: result for job in todo if (result := store.get(job)) is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    text = json.dumps({"conditions": facts, "results": found}, indent=1)
    # A list of numbers on one line.
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda match: f"[{' '.join(match.group(1).split())}]", text)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


def commit() -> str:
    """Return the commit that runs, or 'unknown'."""
    try:
        out = subprocess.run(
            ["git", "-C", str(PACK), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return out.stdout.strip()


def machine() -> str:
    """Return the card's or the processor's name."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text(encoding="utf-8", errors="replace").splitlines()
            if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return cpu
