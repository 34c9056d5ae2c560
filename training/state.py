"""Training states on disk: atomic step directories, found again after any kind of end.

    <dir>/step-000250/{__0_0.distcp, __1_0.distcp, ..., .metadata, manifest.json}

A directory is written as ``step-000250.tmp`` and renamed when complete; the manifest, written last, holds sizes and
SHA-256 of the others. Whatever lacks that is incomplete: named, skipped, never loaded. Tensors are stored by group,
``model/<name>``, ``optimizer/<slot>/<name>``, ``ema/<name>`` and ``rng/...``; how many processes wrote does not matter.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from .files import file_sha256, sync
from .peers import Peers
from .pieces import OVERHEAD, Piece, PiecesError, read_pieces, stored_tensors, write_pieces

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^step-(\d{6,})$")
MANIFEST = "manifest.json"
FORMAT = 2
SHARED = "checkpoint.dir must be on a disk that all machines share"
ALONE = Peers()


class SnapshotError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence."""


class NotWrittenError(OSError):
    """A state did not get to the disk; the message says why, the directory is as it was before."""


def save_step(
    folder: Path,
    step: int,
    pieces: Mapping[str, Piece],
    meta: Mapping[str, Any],
    keep: int,
    peers: Peers = ALONE,
) -> Path:
    """Return the complete directory just written, all processes together; raises NotWrittenError on all of them.

    Older directories beyond ``keep`` are removed after a success only.
    """
    final = folder / f"step-{step:06d}"
    partial = folder / f"{final.name}.tmp"
    need = sum(piece.whole_bytes + peers.size * OVERHEAD for piece in pieces.values()) + (1 << 20)
    try:
        peers.main(lambda: _make_room(folder, partial, need))
        write_pieces(partial, pieces, peers.group)
        listed = peers.each(lambda: _listed(partial, peers.rank))
        files = {name: entry for part in listed for name, entry in part.items()}
        manifest = {"format": FORMAT, "step": step, "files": files, "processes": peers.size, **meta}
        peers.main(lambda: _complete(partial, final, manifest))
    except OSError as error:
        cause = error
        raise NotWrittenError(peers.main(lambda: _undo(partial, need, cause))) from error
    peers.main(lambda: _prune(folder, step, keep))
    return final


def load_pieces(path: Path, pieces: Mapping[str, Piece], peers: Peers = ALONE) -> None:
    """Fill named pieces from a checkpoint, in place; raises SnapshotError on all processes."""

    def read() -> None:
        try:
            read_pieces(path, pieces)
        except PiecesError as error:
            raise SnapshotError(f"{path}: could not be read: {error}") from None

    peers.each(read)


def load_tensors(
    path: str | Path, group: str, names: Collection[str] | None = None, *, verify: bool = True
) -> dict[str, torch.Tensor]:
    """Return the tensors of a group ('model', 'ema', 'optimizer', 'rng') of a checkpoint, whole and on the CPU.

    Needs no process group and no model. ``names`` restricts it to some, so that a large state can be read in parts;
    ``verify = False`` then skips the hashes after the first part. Raises SnapshotError with one sentence.
    """
    path = Path(path)
    check_complete(path, hashes=verify)
    found = {name.split("/", 1)[1]: sort for name, sort in stored_tensors(path).items() if name.startswith(group + "/")}
    if not found:
        raise SnapshotError(f"{path}: holds no group '{group}'; look for 'model', 'ema', 'optimizer' or 'rng'")
    wanted = list(found) if names is None else list(names)
    if missing := [name for name in wanted if name not in found]:
        raise SnapshotError(f"{path}: holds no tensor '{missing[0]}' in '{group}'")
    tensors = {name: torch.empty(found[name][0], dtype=found[name][1]) for name in wanted}
    load_pieces(path, {f"{group}/{name}": Piece.of(tensor) for name, tensor in tensors.items()})
    return tensors


def list_steps(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, directory) of everything that is named like a finished checkpoint, in order."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    return sorted((int(match.group(1)), path) for match, path in found)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint; raises SnapshotError when it is missing, damaged or of another format."""
    if not path.is_dir():
        raise SnapshotError(f"{path}: there is no such checkpoint directory")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, _, files = int(manifest["format"]), int(manifest["step"]), dict(manifest["files"])
        if any(not {"size", "sha256"} <= set(entry) for entry in files.values()):
            raise ValueError("a file has no size or no hash")
    except FileNotFoundError:
        raise SnapshotError(f"{path}: is incomplete, it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(f"{path}: its {MANIFEST} is damaged: {error}") from None
    if version > FORMAT:
        raise SnapshotError(f"{path}: was written by a newer version (format {version}); update the pack")
    if version < FORMAT:
        raise SnapshotError(
            f"{path}: was written by an older version (format {version}); finish that run with the version that "
            "started it, or start a new run from its exported weights"
        )
    return manifest


def check_complete(path: Path, peers: Peers = ALONE, *, hashes: bool = True) -> dict[str, Any]:
    """Return the manifest if every file is there with the right size and hash; raises SnapshotError otherwise.

    The processes share the hashing, and all raise what one of them finds.
    """

    def check() -> dict[str, Any]:
        if peers.size > 1 and not path.is_dir():
            raise SnapshotError(f"{path}: process {peers.rank} does not see it; {SHARED}")
        manifest = read_manifest(path)
        for place, (name, want) in enumerate(sorted(manifest["files"].items())):
            file = path / name
            if not file.is_file():
                raise SnapshotError(f"{path}: is incomplete, {name} is missing")
            if file.stat().st_size != want["size"]:
                raise SnapshotError(f"{path}: is damaged, {name} has {file.stat().st_size} bytes, not {want['size']}")
            if hashes and place % peers.size == peers.rank and file_sha256(file) != want["sha256"]:
                raise SnapshotError(f"{path}: is damaged, {name} does not have the recorded hash")
        return manifest

    return peers.each(check)[0]


def find_latest(folder: Path, peers: Peers = ALONE) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest complete checkpoint of a folder and its manifest, or None where none was ever finished.

    Incomplete ones are named and skipped. Raises SnapshotError when there are some but none can be used: to start
    at step 0 would throw away what was trained.
    """
    found, unfinished = peers.main(lambda: (list_steps(_recovered(folder)), sorted(folder.glob("step-*.tmp"))))
    for partial in unfinished:
        _say(peers, "%s: was never finished and is skipped", partial)
    last = None
    for _, path in reversed(found):
        try:
            return path, check_complete(path, peers)
        except SnapshotError as error:
            last = error
            _say(peers, "%s; it is skipped", error)
    if last is not None:
        raise SnapshotError(
            f"{last}; no checkpoint in {folder} can be used: bring a copy back, or start a new run in another folder"
        )
    return None


def _say(peers: Peers, text: str, value: object) -> None:
    if peers.is_main:
        _log.warning(text, value)


def _make_room(folder: Path, partial: Path, need: int) -> None:
    """Make the directory that is written to, on a disk that has room for it."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in _recovered(folder).glob("step-*.tmp"):
        shutil.rmtree(stale)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    partial.mkdir()


def _listed(partial: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Return size and hash of the files that this process wrote."""
    mine = list(partial.glob(f"__{rank}_*")) + ([partial / ".metadata"] if rank == 0 else [])
    return {path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)} for path in mine}


def _complete(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and give the directory its name; a directory that had it stays until then."""
    if unseen := [name for name in manifest["files"] if not (partial / name).is_file()]:
        raise OSError(f"the main process does not see {unseen[0]}; {SHARED}")
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    sync(partial / MANIFEST)
    sync(partial)
    replaced = final.with_name(f"{final.name}.old")
    if final.exists():
        os.replace(final, replaced)
    os.replace(partial, final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _recovered(folder: Path) -> Path:
    """Return the folder after giving back its name to a directory whose replacement did not get it."""
    for old in folder.glob("step-*.old"):
        if old.with_suffix("").exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, old.with_suffix(""))
    return folder


def _undo(partial: Path, need: int, error: OSError) -> str:
    """Remove what was written and return why it was not completed."""
    full = disk_is_full(error) or _is_full(partial, need)
    shutil.rmtree(partial, ignore_errors=True)
    if not full:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    free = shutil.disk_usage(partial.parent).free
    return f"the disk is full, a state in {partial.parent} needs {_mb(need)} and {_mb(free)} are free"


def _is_full(partial: Path, need: int) -> bool:
    """Return True if what is still to be written has no room: torch says nothing of a full disk."""
    try:
        written = sum(path.stat().st_size for path in partial.iterdir())
        if shutil.disk_usage(partial).free < need - written:
            return True
        with (partial / "probe").open("wb") as file:  # a quota does not show in the free space
            file.write(bytes(1 << 22))
            os.fsync(file.fileno())
    except OSError as error:
        return disk_is_full(error)
    return False


def disk_is_full(error: OSError) -> bool:
    """Return True if the error says that no space is left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove the oldest complete checkpoints beyond ``keep``; those of a later step belong to a run that was left."""
    ours = []
    for number, path in list_steps(folder):
        if number > step:
            aside = path.with_name(f"{path.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            _log.warning("%s is of a later step than the run that went on from before it; it is now %s", path, aside)
            continue
        try:
            read_manifest(path)
        except SnapshotError:
            continue
        ours.append(path)
    for old in ours[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
