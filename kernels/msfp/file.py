"""The MSFP file: a Wan transformer whose linear layers are packed, one safetensors file, checked by its header alone.

Every tensor's name starts with ``msfp_model.``, so that a loader that does not know the form finds no Wan in it. A
packed layer ``blocks.0.ffn.2`` has ``.codes`` (uint8), ``.scale``, for unsigned formats ``.zero``, and its ``.bias``;
everything else is as in a Wan file. The header's ``msfp.layers`` says for each packed layer its weight format and its
input quantizer:

    {"blocks.0.ffn.2": {"weight": {"format": "e2m1", "granularity": 64, "columns": 8960},
                        "input": {"format": "ue2m2", "mode": "static", "maxval": 3.1, "zero": -0.17}}, ...}

``input`` may be null: the input stays as it is. ``msfp.fingerprint`` names the file for what was trained on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Header, HeaderError, read_metadata, write_streamed
from ..own_file import check_version, named, opened
from .formats import FloatFormat, FormatError
from .inputs import InputQuantizer
from .packing import packed_width
from .weights import WeightFormat

if TYPE_CHECKING:
    import torch

    from .weights import PackedWeight

KEY, PREFIX, VERSION = "msfp.", "msfp_model.", 1
SCALE_TYPES = ("F32", "BF16")
_PARTS = ("codes", "scale", "zero")


@dataclass(frozen=True)
class PackedLayer:
    """How a linear layer is kept: the weight's format and columns, and what happens to its input (None: nothing)."""

    weight: WeightFormat
    columns: int
    input: InputQuantizer | None = None


@dataclass(frozen=True)
class MsfpFile:
    """What the header of an MSFP file says; ``plain`` are the other tensors' (dtype, shape) by original name."""

    path: Path
    layers: Mapping[str, PackedLayer]
    rows: Mapping[str, int]
    plain: Mapping[str, tuple[str, tuple[int, ...]]]
    header: Header | None
    fingerprint: str
    facts: Mapping[str, str]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the Wan model that the file stands for, by original name."""
        packed = {f"{name}.weight": (self.rows[name], layer.columns) for name, layer in self.layers.items()}
        return {**{name: shape for name, (_, shape) in self.plain.items()}, **packed}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (original name, tensor) of everything that is not packed. Raises HeaderError for a damaged file."""
        for name in self.plain:
            yield name, self.tensor(name)

    def packed(self) -> Iterator[tuple[str, PackedWeight]]:
        """Yield (layer, weight) of the packed layers. Raises HeaderError for scales that are not finite, and for a
        damaged file."""
        for name in self.layers:
            yield name, self.weight(name)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor that is not packed, by original name."""
        with self._open() as file:
            return file.get_tensor(PREFIX + name).clone()

    def weight(self, name: str) -> PackedWeight:
        """Return the weight of one packed layer. Raises HeaderError for scales that are not finite."""
        from .weights import PackedWeight

        layer = self.layers[name]
        with self._open() as file:
            codes = file.get_tensor(f"{PREFIX}{name}.codes").clone()
        return PackedWeight(codes, *self.scales(name), layer.weight, layer.columns)

    def scales(
        self, name: str, read: Callable[[str], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return one packed layer's scales, and zero points or None. Raises HeaderError if they are not finite.

        ``read`` gives a tensor by its name in the file, for who has it open already.
        """
        if read is None:
            with self._open() as file:
                return self.scales(name, lambda part: file.get_tensor(part).clone())
        found = [read(f"{PREFIX}{name}.{part}") for part in _parts(self.layers[name])[1:]]
        if not all(bool(part.isfinite().all()) for part in found):
            raise HeaderError(f"{self.path.name}: the scales of {name} are not finite; quantize the model again.")
        return found[0], found[1] if len(found) > 1 else None

    def _open(self) -> contextlib.AbstractContextManager[Any]:
        return opened(self.path, "copy or make it again")


def is_msfp(metadata: Mapping[str, str]) -> bool:
    """Return whether a file's metadata are those of an MSFP file."""
    return any(key.startswith(KEY) for key in metadata)


def read_msfp(path: str | Path) -> MsfpFile:
    """Return what an MSFP file holds, by its header; no weight is read.

    Raises HeaderError, one sentence, for a file that is no MSFP file, damaged, newer, or contradicts itself.
    """
    path = Path(path)
    metadata, tensors = read_metadata(path)
    if not is_msfp(metadata):
        raise HeaderError(
            f"{path.name} is not an MSFP file; make one with `python -m training.quantize`, or load it with the loader "
            "of its own kind."
        )
    try:
        return _checked(path, metadata, tensors)
    except (HeaderError, FormatError) as error:
        raise named(path, error) from None


def _checked(path: Path, metadata: dict[str, str], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> MsfpFile:
    check_version(metadata, KEY + "version", VERSION, "its MSFP header", "quantize the model again")
    strange = next((name for name in tensors if not name.startswith(PREFIX)), None)
    if strange is not None:
        raise HeaderError(f"has the tensor {strange}, but all of an MSFP file's start with {PREFIX}; it is damaged")
    known = {name[len(PREFIX) :]: entry for name, entry in tensors.items()}
    layers, rows = {}, {}
    for name, entry in _entries(metadata).items():
        layers[name] = _layer(name, entry)
        rows[name] = _check_tensors(name, layers[name], known)
    taken = {f"{name}.{part}" for name, layer in layers.items() for part in _parts(layer)}
    plain = {name: entry for name, entry in known.items() if name not in taken}
    for name in plain:
        layer, _, part = name.rpartition(".")
        if part in _PARTS:
            why = "signed and has none" if layer in layers else "not described in the header"
            raise HeaderError(f"has {name}, but the layer is {why}; quantize the model again")
        if part == "weight" and layer in layers:
            raise HeaderError(f"has {layer} both packed and as it was; quantize the model again")
    facts = {key[len(KEY) :]: value for key, value in metadata.items() if key.startswith(KEY)}
    return MsfpFile(path, layers, rows, plain, Header.from_metadata(metadata), facts.get("fingerprint", ""), facts)


def _entries(metadata: dict[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(KEY + "layers", ""))
    except (ValueError, RecursionError):
        raise HeaderError("its list of packed layers cannot be read; quantize the model again") from None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise HeaderError("its list of packed layers is no table of layers; quantize the model again")
    return found


def _layer(name: str, entry: dict[str, Any]) -> PackedLayer:
    try:
        weight = entry.get("weight")
        if not isinstance(weight, dict):
            raise FormatError(f"its weight is {str(weight)[:40]!r}; it must be a table")
        form = WeightFormat(FloatFormat.parse(weight.get("format")), weight.get("granularity"))
        columns = weight.get("columns")
        if type(columns) is not int or columns < 1:
            raise FormatError(f"its columns are {str(columns)[:40]!r}, not a positive number")
        given = entry.get("input")
        return PackedLayer(form, columns, None if given is None else InputQuantizer.from_dict(given))
    except FormatError as error:
        raise HeaderError(f"layer {name}: {error}") from None


def _parts(layer: PackedLayer) -> tuple[str, ...]:
    return _PARTS[:2] if layer.weight.form.signed else _PARTS


def _check_tensors(name: str, layer: PackedLayer, known: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Return the rows of a packed layer whose tensors are all there and fit."""
    for part in _parts(layer):
        if f"{name}.{part}" not in known:
            what = {"codes": "codes", "scale": "scales", "zero": "zero points"}[part]
            raise HeaderError(f"layer {name} has no {what}; the file is incomplete, quantize the model again")
    kind, codes = known[f"{name}.codes"]
    try:
        width = packed_width(layer.columns, layer.weight.form.bits)
        if kind != "U8" or len(codes) != 2 or codes[0] < 1 or codes[1] != width:
            raise FormatError(
                f"codes are {kind} {codes}, those of {layer.columns} columns in {layer.weight.form.name} are U8 with "
                f"{width} to a row"
            )
        wanted = layer.weight.scale_shape(codes[0], layer.columns)
        for part in _parts(layer)[1:]:
            kind, shape = known[f"{name}.{part}"]
            if kind not in SCALE_TYPES or shape != wanted:
                raise FormatError(f"{part} is {kind} {shape}, it must be {' or '.join(SCALE_TYPES)} of shape {wanted}")
    except FormatError as error:
        raise HeaderError(f"layer {name}: {error}") from None
    bias = known.get(f"{name}.bias")
    if bias is not None and bias[1] != (codes[0],):
        raise HeaderError(f"layer {name}: its bias has shape {bias[1]}, its codes have {codes[0]} rows")
    return codes[0]


def fingerprint_of(layers: Mapping[str, PackedLayer], scales: Mapping[str, torch.Tensor]) -> str:
    """Return what names a quantized model: 16 hex digits of its layers' formats and scales."""
    digest = hashlib.sha256(_layers_text(layers).encode())
    for name in sorted(scales):
        digest.update(scales[name].detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_msfp(
    path: str | Path,
    layers: Mapping[str, PackedLayer],
    rows: Mapping[str, int],
    plain: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, torch.Tensor | PackedWeight]],
    *,
    scale_dtype: torch.dtype,
    fingerprint: str,
    header: Header | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write an MSFP file as its tensors come, whole or not at all.

    ``layers`` and ``rows`` say which layers are packed; ``plain`` what else comes, by original name. ``tensors`` yields
    (layer, PackedWeight) and (original name, tensor), each once, in any order. Raises as
    ``kernels.checkpoint.write_streamed``.
    """
    import torch

    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {PREFIX + n: entry for n, entry in plain.items()}
    for name, layer in layers.items():
        scales = (scale_dtype, layer.weight.scale_shape(rows[name], layer.columns))
        width = packed_width(layer.columns, layer.weight.form.bits)
        layout[f"{PREFIX}{name}.codes"] = (torch.uint8, (rows[name], width))
        layout |= {f"{PREFIX}{name}.{part}": scales for part in _parts(layer)[1:]}

    def parts() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                yield PREFIX + name, tensor
                continue
            yield f"{PREFIX}{name}.codes", tensor.codes
            yield f"{PREFIX}{name}.scale", tensor.scale
            if tensor.zero is not None:
                yield f"{PREFIX}{name}.zero", tensor.zero

    metadata = {
        KEY + "version": str(VERSION), KEY + "layers": _layers_text(layers), KEY + "fingerprint": fingerprint,
        **{KEY + key: value for key, value in (facts or {}).items()},
    }  # fmt: skip
    write_streamed(path, layout, parts(), header, metadata)


def _layers_text(layers: Mapping[str, PackedLayer]) -> str:
    found = {
        name: {
            "weight": {
                "format": layer.weight.form.name, "granularity": layer.weight.granularity, "columns": layer.columns,
            },
            "input": None if layer.input is None else layer.input.to_dict(),
        }
        for name, layer in layers.items()
    }  # fmt: skip
    return json.dumps(found, separators=(",", ":"), sort_keys=True)
