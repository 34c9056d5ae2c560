"""Which files a path means: one file, shards with their index, a folder of either, or a diffusers pipeline."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...kernels.checkpoint import HeaderError, read_header, read_metadata
from ..names import ModelError

INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
_PICKLES = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies, and as what."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Files:
    """The files behind a path: their tensors by stored name, their metadata, and diffusers' config if there is one."""

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, Stored]
    metadata: dict[str, str]
    config: dict[str, Any] | None = None


def find_files(path: str | Path) -> Files:
    """Return the files that a path means, their headers read; raises ModelError with one sentence."""
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            return _folder(path)
        if path.name.endswith(".json"):
            return _sharded(path, path, None)
        if path.suffix in (*_PICKLES, ".gguf"):
            raise ModelError(f"{path}: is a {path.suffix} file, which is not read; give the .safetensors form of it")
        return _read(path, [path], None)
    except HeaderError as error:
        raise ModelError(str(error)) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None


def _folder(path: Path) -> Files:
    if (path / "transformer").is_dir():
        return _folder(path / "transformer")
    config = _config(path / "config.json")
    indices = sorted(path.glob("*" + INDEX))
    if len(indices) > 1:
        raise ModelError(f"{path}: holds several indices ({_listed(indices)}); give the path of the one that is meant")
    if indices:
        return _sharded(path, indices[0], config)
    files = sorted(file for file in path.glob("*.safetensors") if not file.name.startswith("."))
    if not files:
        others = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
        found = f", only {_listed(others)}" if others else ""
        raise ModelError(f"{path}: holds no .safetensors file{found}; give the folder or file of a Wan transformer")
    matches = [_SHARD.match(file.name) for file in files]
    if len(files) == 1 and not matches[0]:
        return _read(path, files, config)
    sets = {(match["stem"], int(match["count"])) if match else (file.name, 0) for file, match in zip(files, matches)}
    if len(sets) > 1 or not all(matches):
        raise ModelError(f"{path}: holds several models ({_listed(files)}); give the path of the one that is meant")
    ((stem, count),) = sets
    for number in range(1, count + 1):
        shard = path / f"{stem}-{number:05d}-of-{count:05d}.safetensors"
        if shard not in files:
            raise ModelError(f"{path}: lacks the shard {shard.name}; download it")
    return _read(path, files, config)


def _sharded(path: Path, index: Path, config: dict[str, Any] | None) -> Files:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = sorted(set(places.values()))
        inside = all(isinstance(name, str) and Path(name).name == name for name in named)
    except (ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise ModelError(f"{index}: is not an index of safetensors shards (no usable weight_map); download it again")
    for name in named:
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent}: lacks the shard {name}, which {index.name} names; download it")
    found = _read(path, [index.parent / name for name in named], config)
    for name, shard in places.items():
        if name not in found.tensors or found.tensors[name].file.name != shard:
            raise ModelError(f"{index.parent / shard}: lacks the tensor {name}, which {index.name} says is in it")
    return found


def _read(path: Path, files: list[Path], config: dict[str, Any] | None) -> Files:
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for file in files:
        said, entries = read_metadata(file)
        read_header(file)  # a damaged or newer header is refused here, not carried on
        metadata |= said
        for name, (dtype, shape) in entries.items():
            if name in tensors:
                raise ModelError(f"{file}: has the tensor {name}, which {tensors[name].file.name} has already")
            tensors[name] = Stored(file, name, dtype, shape)
    return Files(path, tuple(files), tensors, metadata, config)


def _config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: is not a JSON table; download it again")
    return config


def _listed(files: list[Path], most: int = 3) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
