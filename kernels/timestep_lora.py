"""The file of a timestep-aware LoRA (TALoRA): several LoRAs per layer, and which of them acts at which noise level.

The layers' outputs gain ``scale * (x A_i^T) B_i^T`` with ``i = table.at(sigma)``; x is the layer's input in full
precision. Tensors are ``<layer>.talora_A (hub, rank, in)`` and ``<layer>.talora_B (hub, out, rank)`` under the original
names of the layers; the header has the table, from sigma 1 down, as a schedule's phases:

    [[0.8333, 1], [0.25, 0], [0.0, 2]]        LoRA 1 for sigma >= 0.8333, LoRA 0 down to 0.25, LoRA 2 below
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import Header, HeaderError, read_metadata, write_checkpoint
from .own_file import check_version, named, opened

if TYPE_CHECKING:
    import torch

KEY, VERSION = "talora.", 1
# Sigmas of samplers are float32.
TOLERANCE = 1e-6
MOST_LORAS, MOST_ROWS = 64, 4096
_TYPES = ("F32", "BF16", "F16")
_NAME = re.compile(r"(?P<layer>.+)\.talora_(?P<part>[AB])")


@dataclass(frozen=True)
class RouteTable:
    """Which LoRA acts at which sigma: ``(until, index)`` rows, each for ``sigma >= until``, down to 0."""

    rows: tuple[tuple[float, int], ...]

    def __post_init__(self) -> None:
        ends = [until for until, _ in self.rows]
        if not ends or ends[-1] != 0.0:
            raise HeaderError("the table of routes does not reach sigma 0; its last row must be [0, index]")
        if any(not 0 <= until < 1 for until in ends) or any(a <= b for a, b in pairwise(ends)):
            raise HeaderError("the table of routes does not fall from sigma 1 to 0; each row must end below the last")
        if any(index < 0 for _, index in self.rows):
            raise HeaderError("the table of routes has a negative LoRA; they count from 0")

    def at(self, sigma: float) -> int:
        """Return the LoRA of a noise level; below 0 and above 1 that of the nearest."""
        return next((index for until, index in self.rows if sigma >= until - TOLERANCE), self.rows[-1][1])

    @property
    def count(self) -> int:
        """One more than the highest LoRA that is used."""
        return 1 + max(index for _, index in self.rows)

    @property
    def text(self) -> str:
        """The table in words, a row a line."""
        above, lines = 1.0, []
        for until, index in self.rows:
            lines.append(f"sigma {above:.4f} .. {until:.4f}   LoRA {index}")
            above = until
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the text that a file keeps."""
        return json.dumps([[until, index] for until, index in self.rows])

    @staticmethod
    def from_json(text: str) -> RouteTable:
        """Return the table of a file. Raises HeaderError, one sentence."""
        try:
            rows = json.loads(text)
            if not isinstance(rows, list) or len(rows) > MOST_ROWS:
                raise ValueError
            if not all(isinstance(row, list) and len(row) == 2 and type(row[1]) is int for row in rows):
                raise ValueError
            found = tuple((_number(until), index) for until, index in rows)
        except (ValueError, TypeError, RecursionError):
            raise HeaderError("the table of routes cannot be read; export the LoRA again") from None
        return RouteTable(found)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError
    return float(value)


@dataclass(frozen=True)
class TimestepLora:
    """What the header of such a file says; ``layers`` has (in, out) features by original name."""

    path: Path
    table: RouteTable
    hub: int
    rank: int
    scale: float
    layers: Mapping[str, tuple[int, int]]
    header: Header | None
    base: str
    """Fingerprint of the quantized model that it was trained on, '' for a full-precision one."""

    def tensors(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield (layer, A, B). Raises HeaderError for values that are not finite, or a file that cannot be read."""
        with opened(self.path, "copy or export it again") as file:
            for layer in self.layers:
                first, second = (file.get_tensor(f"{layer}.talora_{part}") for part in "AB")
                if not (bool(first.isfinite().all()) and bool(second.isfinite().all())):
                    raise HeaderError(f"{self.path.name}: the LoRA of {layer} is not finite; export it again.")
                yield layer, first, second

    def misfit(self, linears: Mapping[str, tuple[int, int]]) -> str | None:
        """Return why this is not for a model with these linear layers (in, out), None if it fits."""
        for layer, (columns, rows) in self.layers.items():
            have = linears.get(layer)
            if have is None:
                return f"{self.path.name} is for another model: it adapts {layer}, which this one does not have."
            if have != (columns, rows):
                return (
                    f"{self.path.name} is for another model: it adapts {layer} of {columns} -> {rows} features, this "
                    f"one's is {have[0]} -> {have[1]}."
                )
        return None


def is_timestep_lora(metadata: Mapping[str, str]) -> bool:
    """Return whether a file's metadata are those of a timestep-aware LoRA."""
    return any(key.startswith(KEY) for key in metadata)


def read_timestep_lora(path: str | Path) -> TimestepLora:
    """Return what a timestep-aware LoRA holds, by its header. Raises HeaderError, one sentence."""
    path = Path(path)
    metadata, tensors = read_metadata(path)
    if not is_timestep_lora(metadata):
        raise HeaderError(
            f"{path.name} is not a timestep-aware LoRA; train one with [talora], or give an ordinary LoRA to the stock "
            "LoRA loader."
        )
    try:
        return _checked(path, metadata, tensors)
    except HeaderError as error:
        raise named(path, error) from None


def _checked(path: Path, metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> TimestepLora:
    check_version(metadata, KEY + "version", VERSION, "its header", "export the LoRA again")
    table = RouteTable.from_json(metadata.get(KEY + "table", ""))
    try:
        scale = _number(json.loads(metadata.get(KEY + "scale", "")))
    except (ValueError, RecursionError):
        raise HeaderError("its scale is not a number; export the LoRA again") from None
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (kind, shape) in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise HeaderError(f"has the tensor {name}, which is none of a timestep-aware LoRA")
        if kind not in _TYPES or len(shape) != 3 or min(shape) < 1:
            raise HeaderError(f"{name} is {kind} {shape}; it must have three axes and be {', '.join(_TYPES)}")
        parts.setdefault(match["layer"], {})[match["part"]] = shape
    if not parts:
        raise HeaderError("it has no tensors; export the LoRA again")
    layers, sizes = {}, set()
    for layer, found in parts.items():
        if len(found) < 2:
            raise HeaderError(f"{layer} lacks its talora_{'AB'.strip(next(iter(found)))}; the file is incomplete")
        (hub, rank, columns), (hub_b, rows, rank_b) = found["A"], found["B"]
        if (hub, rank) != (hub_b, rank_b):
            raise HeaderError(f"{layer} has A {found['A']} and B {found['B']}, which make no low-rank matrices")
        layers[layer] = (columns, rows)
        sizes.add((hub, rank))
    if len(sizes) > 1:
        raise HeaderError("its layers have different numbers of LoRAs or ranks; export the LoRA again")
    hub, rank = sizes.pop()
    if hub > MOST_LORAS or table.count > hub:
        raise HeaderError(f"its table uses {table.count} LoRAs, it has {hub} (at most {MOST_LORAS}); export it again")
    return TimestepLora(
        path, table, hub, rank, scale, layers, Header.from_metadata(metadata), metadata.get(KEY + "base", "")
    )


def write_timestep_lora(
    path: str | Path,
    hubs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    table: RouteTable,
    scale: float,
    *,
    base: str = "",
    header: Header | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the hubs ``{layer: (A, B)}`` with their table, whole or not at all. Raises as ``write_checkpoint``."""
    tensors = {}
    for layer, (first, second) in hubs.items():
        tensors[f"{layer}.talora_A"], tensors[f"{layer}.talora_B"] = first, second
    metadata = {
        KEY + "version": str(VERSION), KEY + "table": table.to_json(), KEY + "scale": json.dumps(scale),
        KEY + "base": base, **{KEY + key: value for key, value in (facts or {}).items()},
    }  # fmt: skip
    write_checkpoint(path, tensors, header, metadata)
