"""Training state on disk: atomic step directories, found again after any kind of end.

    <dir>/step-000250/{model,optimizer,rng[,ema]}.safetensors, manifest.json

A directory is written as ``step-000250.tmp`` and renamed when complete; the manifest, written last, holds sizes and
SHA-256 of the others. Whatever lacks that is incomplete: named, skipped, never loaded.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .files import file_sha256

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^step-(\d{6,})$")
MANIFEST = "manifest.json"
FORMAT = 1
# How safetensors words a full disk or quota: on Linux and macOS, and on Windows, which translates the words.
_FULL = ("No space left", "quota exceeded", "not enough space", "(os error 112)")


class SnapshotError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence."""


@dataclass
class Snapshot:
    """All that a run needs to go on as if nothing had happened."""

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]  # one file per group: model, optimizer, rng, ema
    meta: dict[str, Any]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, torch.Tensor]:
    """Return AdamW's state as flat tensors, keyed ``<slot>/<parameter name>``; ``names`` maps id(parameter) to name."""
    flat = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            flat[f"{slot}/{names[id(parameter)]}"] = torch.as_tensor(value).detach().cpu().clone()
    return flat


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], flat: Mapping[str, torch.Tensor]
) -> None:
    """Put flat tensors back into the optimizer's state, on each parameter's device ."""
    for key, value in flat.items():
        slot, name = key.split("/", 1)
        parameter = parameters[name]
        device = "cpu" if slot == "step" and not optimizer.defaults.get("fused") else parameter.device
        optimizer.state[parameter][slot] = value.to(device)


def save_snapshot(folder: Path, snapshot: Snapshot, keep: int) -> Path | None:
    """Return the complete directory just written, or None (with one warning) when the disk is full.

    The last good checkpoints stay in that case and the run can go on. Older ones beyond ``keep`` are removed after
    a success only.
    """
    files = {f"{group}.safetensors": tensors for group, tensors in snapshot.tensors.items()}
    final = folder / f"step-{snapshot.step:06d}"
    partial = folder / f"{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        need = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values()) + (1 << 20)
        free = shutil.disk_usage(folder).free
        if free < need:
            raise OSError(errno.ENOSPC, f"needs {_mb(need)}, {_mb(free)} are free")
        partial.mkdir()
        listed = {}
        for name, tensors in files.items():
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial / name)
            _sync(partial / name)
            listed[name] = {"size": (partial / name).stat().st_size, "sha256": file_sha256(partial / name)}
        manifest = {"format": FORMAT, "step": snapshot.step, "files": listed, **snapshot.meta}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _sync(partial / MANIFEST)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not disk_is_full(error):
            raise
        _log.warning(
            "checkpoint of step %d not written, the disk is full (%s); training goes on, the last good one stays",
            snapshot.step,
            error,
        )
        return None
    for step, old in sorted(list_steps(folder))[:-keep]:
        if step < snapshot.step:
            shutil.rmtree(old, ignore_errors=True)
    return final


def disk_is_full(error: BaseException) -> bool:
    """Return True if the error says that no space is left (safetensors reports it as text)."""
    text = str(error)
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(part in text for part in _FULL)


def list_steps(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, directory) of everything that is named like a finished checkpoint."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    return [(int(match.group(1)), path) for match, path in found]


def check_complete(path: Path) -> dict[str, Any]:
    """Return the manifest if every file is there with the right size and hash; raises SnapshotError otherwise."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        version = int(manifest["format"])
    except FileNotFoundError:
        raise SnapshotError(f"{path}: is incomplete, it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{path}: its {MANIFEST} is damaged: {error}") from None
    if version > FORMAT:
        raise SnapshotError(f"{path}: was written by a newer version (format {version}); update the pack")
    for name, want in files.items():
        file = path / name
        if not file.is_file():
            raise SnapshotError(f"{path}: is incomplete, {name} is missing")
        if file.stat().st_size != want["size"]:
            raise SnapshotError(f"{path}: is damaged, {name} has {file.stat().st_size} bytes, not {want['size']}")
        if file_sha256(file) != want["sha256"]:
            raise SnapshotError(f"{path}: is damaged, {name} does not have the recorded hash")
    return manifest


def load_latest(folder: Path) -> tuple[Path, Snapshot] | None:
    """Return the newest complete checkpoint of a folder and its state, or None; incomplete ones are named, skipped."""
    if folder.is_dir():
        for partial in sorted(folder.glob("step-*.tmp")):
            _log.warning("%s: was never finished and is skipped", partial)
    for _, path in sorted(list_steps(folder), reverse=True):
        try:
            return path, load_snapshot(path)
        except SnapshotError as error:
            _log.warning("%s; it is skipped", error)
    return None


def load_snapshot(path: Path) -> Snapshot:
    """Return the state of a complete checkpoint; raises SnapshotError with one sentence."""
    if not path.is_dir():
        raise SnapshotError(f"{path}: there is no such checkpoint directory")
    manifest = check_complete(path)
    tensors = {name.removesuffix(".safetensors"): load_file(path / name) for name in manifest["files"]}
    meta = {key: value for key, value in manifest.items() if key not in ("format", "step", "files")}
    return Snapshot(manifest["step"], tensors, meta)


def _sync(path: Path) -> None:
    """Force a file or directory to the disk; directories cannot be synced on Windows."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
