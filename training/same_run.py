"""Whether a state belongs to the run that wants to go on from it: every difference is named, with what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..kernels.head_table import HeadTable, HeadTableError
from .config import ConfigError, RunConfig
from .files import fingerprint
from .state import SnapshotError

_log = logging.getLogger(__name__)

# What may change between the parts of one run; a change of anything else would make it another run.
FREE = (
    "activation_checkpointing", "checkpoint", "compile", "data.cache", "data.workers", "device", "output", "parallel",
    "preview", "threads", "vae", "validation",
)  # fmt: skip
# What may change, but is worth a word.
NAMED = (
    "optim.lr", "optim.steps", "optim.warmup", "optim.decay", "optim.final", "optim.clip", "optim.nonfinite_limit",
    "optim.plateau_factor", "optim.plateau_patience",
)  # fmt: skip
MOST = 6


def base_of(config: RunConfig) -> str | None:
    """Return the fingerprint of the weights that the run starts from, None for random ones or where none are."""
    path = config.model.path
    return fingerprint(path) if path is not None and Path(path).exists() else None


def saved_table(manifest: Mapping[str, Any]) -> HeadTable | None:
    """Return the head table of the run that wrote a state, None if it had none; raises HeadTableError."""
    text = manifest.get("heads")
    return None if text is None else HeadTable.from_json(str(text))


def check_same_run(manifest: Mapping[str, Any], config: RunConfig, base: str | None, path: Path) -> None:
    """Raise ConfigError, naming all differences in one sentence, if the state is another run's."""
    then, now = _flat(manifest["config"]), _flat(config.model_dump(mode="json"))
    free = set(FREE)
    if manifest["base"] == base and base is not None:
        free.add("model.path")  # the same weights in another place
    table, other_table = config.attention.table, _other_table(manifest, config)
    if table is not None and other_table is None:
        free.add("attention.heads")  # the same patterns in another place
    if manifest["global_batch"] == config.optim.samples:
        free |= {"optim.batch", "optim.global_batch"}
    differences = []
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if before == after or key in free or key.split(".")[0] in free:
            continue
        if key in NAMED:
            _log.warning("%s was %s when %s was written and is %s from here on", key, before, path.name, after)
            continue
        differences.append(f"{key} is {_short(after)} (was {_short(before)})")
    if None not in (base, manifest["base"]) and base != manifest["base"]:
        differences.append(f"model.path {config.model.path} holds other weights than the run started from")
    if other_table is not None:
        differences.append(other_table)
    if differences:
        more = f" and {len(differences) - MOST} more" if len(differences) > MOST else ""
        raise ConfigError(
            f"{path} was written by another run: {'; '.join(differences[:MOST])}{more}; "
            "set this back, or start a new run in another checkpoint.dir"
        )


def _other_table(manifest: Mapping[str, Any], config: RunConfig) -> str | None:
    """Return what to say where both runs have a head table and they choose other patterns."""
    try:
        before, now = saved_table(manifest), config.attention.table
    except HeadTableError:
        return "the head table in it is damaged"
    if before is None or now is None or before.digest == now.digest:
        return None
    return f"the head table {config.attention.heads or 'of model.path'} has other patterns than the run started with"


def check_same_tensors(
    wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]], path: Path
) -> None:
    """Raise SnapshotError in one sentence if the state's model and averages are not those that are trained here."""
    there = {name: size for name, (size, _) in stored.items() if name.startswith(("model/", "ema/"))}
    here = {name: size for name, size in wanted.items() if torch.Size(size).numel()}
    parts = []
    if shaped := [name for name in here if name in there and there[name] != here[name]]:
        name = shaped[0]
        parts.append(f"{name} is {_by(there[name])} there and {_by(here[name])} here{_more(shaped)}")
    if missing := [name for name in here if name not in there]:
        parts.append(f"{missing[0]} is not in it{_more(missing)}")
    if unknown := [name for name in there if name not in here]:
        parts.append(f"its {unknown[0]} has no place here{_more(unknown)}")
    if parts:
        raise SnapshotError(
            f"{path}: is the state of another model: {'; '.join(parts)}; "
            "go on with the model that it was written with, or start a new run in another checkpoint.dir"
        )


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _short(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _by(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
