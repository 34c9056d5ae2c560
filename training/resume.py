"""What a checkpoint of a run holds, and how a run goes on from one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .config import ConfigError, RunConfig
from .distributed import World
from .state import Snapshot, SnapshotError, list_steps, load_latest, load_optimizer, load_snapshot, optimizer_tensors

if TYPE_CHECKING:
    from .loop import Training

_log = logging.getLogger(__name__)

# What may change between the parts of one run; a change of anything else would make it another run.
FREE = ("checkpoint", "output", "validation", "threads", "device", "activation_checkpointing", "vae")
# What may change, but is worth a word.
NAMED = ("optim.lr", "optim.steps", "optim.warmup", "optim.decay", "optim.final", "optim.clip", "optim.nonfinite_limit")


def capture(run: Training, config: RunConfig, world: World) -> Snapshot:
    """Return the run's state, on the CPU."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    tensors = {
        "model": {name: tensor.detach().cpu() for name, tensor in run.model.state_dict().items()},
        "optimizer": optimizer_tensors(run.optimizer, names),
        "rng": {"cpu": torch.get_rng_state()},
    }
    if run.ema is not None:
        tensors["ema"] = {name: tensor.detach().cpu() for name, tensor in run.ema.items()}
    whole = config.optim.samples
    meta = {
        "samples": run.step * whole,
        "global_batch": whole,
        "skipped": run.skipped,
        "skipped_in_a_row": run.skipped_in_a_row,
        "torch": torch.__version__,
        "config": config.model_dump(mode="json"),
    }
    return Snapshot(run.step, tensors, meta)


def restore(run: Training, config: RunConfig, resume: str, world: World) -> None:
    """Put the chosen checkpoint's state into the run; nothing for a run from the start.

    Raises ConfigError when the run would overwrite or contradict what is there, SnapshotError for a bad checkpoint.
    """
    folder = Path(config.checkpoint.dir)
    if resume == "none":
        if steps := list_steps(folder):
            raise ConfigError(
                f"checkpoint.dir {folder} already holds {len(steps)} checkpoints up to step {max(steps)[0]}; "
                "go on with --resume auto, or name another directory"
            )
        return
    found = load_latest(folder) if resume == "auto" else (Path(resume), load_snapshot(Path(resume)))
    if found is None:
        _log.info("%s holds no complete checkpoint; the run starts at step 0", folder)
        return
    path, snapshot = found
    _check_same_run(snapshot, config, path, world)
    parameters = dict(run.model.named_parameters())
    try:
        run.model.load_state_dict(snapshot.tensors["model"])
        load_optimizer(run.optimizer, parameters, snapshot.tensors["optimizer"])
        if run.ema is not None:
            for name, tensor in snapshot.tensors["ema"].items():
                run.ema[name].copy_(tensor)
        torch.set_rng_state(snapshot.tensors["rng"]["cpu"])
    except (KeyError, RuntimeError) as error:
        raise SnapshotError(f"{path}: does not fit this model: {str(error).splitlines()[0]}") from None
    run.step = snapshot.step
    run.skipped, run.skipped_in_a_row = snapshot.meta["skipped"], snapshot.meta["skipped_in_a_row"]
    _log.info("going on from %s", path)


def _check_same_run(snapshot: Snapshot, config: RunConfig, path: Path, world: World) -> None:
    then, now = _flat(snapshot.meta["config"]), _flat(config.model_dump(mode="json"))
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if before == after or key.split(".")[0] in FREE:
            continue
        if key in NAMED:
            _log.warning("%s was %s when %s was written and is %s from here on", key, before, path.name, after)
            continue
        raise ConfigError(
            f"{key} is {after!r}, but {path} was written with {before!r}; set it back, or start a new run "
            "in another checkpoint.dir"
        )
    whole = config.optim.samples
    if snapshot.meta["global_batch"] != whole:
        raise ConfigError(
            f"a step is {whole} samples, but {path} was written with "
            f"{snapshot.meta['global_batch']}; set optim.global_batch to that"
        )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
