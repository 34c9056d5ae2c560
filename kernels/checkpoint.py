"""What a checkpoint's safetensors header carries about its attention, and how files are read and written.

All keys start with ``fpsattention.``; every value is a string. Weights keep the original Wan names, so that a stock
loader sees an ordinary Wan file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .grid import LEAST_SLOTS, MOST_SLOTS
from .head_table import HeadTable, HeadTableError
from .schedule import Schedule, ScheduleError

if TYPE_CHECKING:
    import torch

PREFIX = "fpsattention."
VERSION = 1
FP8_FORMATS = ("e4m3fn",)
TIMESTEPS = ("1000*sigma",)
# safetensors itself refuses longer headers.
MAX_HEADER_BYTES = 100_000_000
# Room for the header and for what else grows while a file is written.
FREE_SPACE_MARGIN = 16 << 20


class HeaderError(ValueError):
    """A file or header that cannot be used; the message is one sentence."""


class CheckpointError(OSError):
    """A checkpoint that could not be written; nothing was left behind."""


@dataclass(frozen=True)
class Header:
    """What the attention of a trained model needs: its schedule, the tile it learned, and how it was made.

    ``heads`` is the head table, which a schedule that says ``heads`` needs.
    """

    schedule: Schedule
    slots: int = 64
    tile: tuple[int, int, int] | None = None
    smooth_k: bool = True
    fp8_format: str = "e4m3fn"
    timestep: str = "1000*sigma"
    base_sha256: str = ""
    trainer: str = ""
    step: int = 0
    version: int = VERSION
    heads: HeadTable | None = None

    def to_metadata(self) -> dict[str, str]:
        """Return the header's strings; ``Header.from_metadata`` of them gives this header back."""
        values = {
            "version": str(self.version),
            "schedule": self.schedule.format(),
            "slots": str(self.slots),
            "smooth_k": "true" if self.smooth_k else "false",
            "fp8_format": self.fp8_format,
            "timestep": self.timestep,
            "base_sha256": self.base_sha256,
            "trainer": self.trainer,
            "step": str(self.step),
        }
        if self.tile is not None:
            values["tile"] = "x".join(map(str, self.tile))
        if self.heads is not None:
            values["heads"] = self.heads.to_json()
        return {PREFIX + key: value for key, value in values.items()}

    @staticmethod
    def from_metadata(metadata: dict[str, str]) -> Header | None:
        """Return the header in ``metadata``, or None if it carries none.

        Raises HeaderError, one sentence, if it is damaged, contradictory or from a newer version.
        """
        ours = {key[len(PREFIX) :]: value for key, value in metadata.items() if key.startswith(PREFIX)}
        if not ours:
            return None
        version = _integer(ours, "version")
        if version > VERSION:
            raise HeaderError(
                f"the file carries a v{version} FPSAttention header, this version reads up to v{VERSION}; "
                "update the node pack."
            )
        if version < 1:
            raise HeaderError(f"the file's FPSAttention header says version {version}, which never existed.")
        try:
            schedule = Schedule.parse(_required(ours, "schedule"))
        except ScheduleError as error:
            raise HeaderError(f"the schedule in the file's header is damaged: {error}") from None
        slots = _integer(ours, "slots")
        header = Header(
            schedule=schedule,
            slots=slots,
            tile=_tile(ours, slots),
            smooth_k=_choice(ours, "smooth_k", ("true", "false")) == "true",
            fp8_format=_choice(ours, "fp8_format", FP8_FORMATS),
            timestep=_choice(ours, "timestep", TIMESTEPS),
            base_sha256=ours.get("base_sha256", ""),
            trainer=ours.get("trainer", ""),
            step=_integer(ours, "step"),
            version=version,
            heads=_heads(ours),
        )
        if schedule.uses_heads and header.heads is None:
            raise HeaderError(
                "the header's schedule says 'heads', but it carries no head table; export the model again."
            )
        if header.step < 0:
            raise HeaderError(f"the header's 'step' is {header.step}, which cannot be negative; the file is damaged.")
        return header


def _heads(values: dict[str, str]) -> HeadTable | None:
    try:
        return HeadTable.from_json(values["heads"]) if "heads" in values else None
    except HeadTableError as error:
        raise HeaderError(f"the head table in the file's header is damaged: {error}") from None


def _required(values: dict[str, str], key: str) -> str:
    if key not in values:
        raise HeaderError(f"the file's FPSAttention header has no '{key}'; it is damaged, export the model again.")
    return values[key]


def _integer(values: dict[str, str], key: str) -> int:
    text = _required(values, key)
    try:
        return int(text)
    except (TypeError, ValueError):
        raise HeaderError(
            f"the header's '{key}' is {str(text)[:40]!r}, not a whole number; the file is damaged."
        ) from None


def _choice(values: dict[str, str], key: str, choices: tuple[str, ...]) -> str:
    value = _required(values, key)
    if value not in choices:
        raise HeaderError(
            f"the header's '{key}' is {value!r}, this version knows {' or '.join(choices)}; update the node pack."
        )
    return value


def _tile(values: dict[str, str], slots: int) -> tuple[int, int, int] | None:
    if not LEAST_SLOTS <= slots <= MOST_SLOTS:
        raise HeaderError(
            f"the header's 'slots' is {slots}, a tile has {LEAST_SLOTS} to {MOST_SLOTS}; the file is damaged."
        )
    if "tile" not in values:
        return None
    try:
        tile = tuple(int(part) for part in values["tile"].split("x"))
    except ValueError:
        tile = ()
    if len(tile) != 3 or min(tile) < 1:
        raise HeaderError(f"the header's 'tile' is {values['tile']!r}, not three extents such as 3x5x4.")
    if tile[0] * tile[1] * tile[2] > slots:
        raise HeaderError(f"the header's tile {values['tile']} does not fit its {slots} slots; the file is damaged.")
    return tile


def read_metadata(path: str | Path) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """Return a safetensors file's metadata and its tensors' ``(dtype, shape)`` by name, without reading weights.

    Raises HeaderError, one sentence, for a file that is missing, not safetensors, or truncated.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            plausible = 2 <= length <= MAX_HEADER_BYTES
            text = file.read(min(length, size)) if plausible else b""
    except FileNotFoundError:
        raise HeaderError(f"there is no file {path}; check the path.") from None
    except OSError as error:
        raise HeaderError(f"{path} cannot be read ({error.strerror}).") from None
    if not plausible or not text.lstrip().startswith(b"{"):
        raise HeaderError(f"{path.name} is not a safetensors file; choose a .safetensors file of a Wan model.")
    if len(text) < length:
        raise HeaderError(f"{path.name} is truncated: its header alone needs {length + 8} bytes; download it again.")
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        tensors = {name: (str(e["dtype"]), tuple(e["shape"])) for name, e in entries.items()}
        if not all(type(n) is int and n >= 0 for _, shape in tensors.values() for n in shape):
            raise ValueError
        end = max((int(e["data_offsets"][1]) for e in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
        raise HeaderError(f"the header of {path.name} is damaged; download the file again.") from None
    if size < 8 + length + end:
        raise HeaderError(f"{path.name} is truncated: {size} of {8 + length + end} bytes; download it again.")
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError(f"the header of {path.name} is damaged: its metadata are not strings; download it again.")
    return metadata, tensors


def read_header(path: str | Path) -> Header | None:
    """Return the FPSAttention header of a file, or None if it carries none; HeaderError as ``read_metadata``."""
    metadata, _ = read_metadata(path)
    try:
        return Header.from_metadata(metadata)
    except HeaderError as error:
        raise HeaderError(f"{Path(path).name}: {error}") from None


def write_checkpoint(
    path: str | Path,
    tensors: dict[str, torch.Tensor],
    header: Header | None = None,
    extra_metadata: dict[str, str] | None = None,
) -> None:
    """Write ``tensors`` with ``header`` to one safetensors file, whole or not at all.

    Raises CheckpointError if the folder has too little space or the write fails; an older file of that name survives.
    Raises HeaderError for a header that could not be read back.
    """
    from safetensors.torch import save_file

    metadata = _metadata(header, extra_metadata)
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    with replacing(Path(path), needed) as temporary:
        # safetensors makes files that only their owner can read; a new file shall have the rights of any other.
        mode = temporary.stat().st_mode
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, metadata=metadata)
        temporary.chmod(mode)


def write_streamed(
    path: str | Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    header: Header | None = None,
    extra_metadata: dict[str, str] | None = None,
) -> None:
    """Write tensors to one safetensors file as they come, in any order, whole or not at all.

    ``layout`` says beforehand what comes: {name: (dtype, shape)}. Only one tensor is held at a time. Raises as
    ``write_checkpoint``, and ValueError if what comes is not what was announced.
    """
    metadata = _metadata(header, extra_metadata)
    # Wide types first, as readers that map the file need every tensor aligned to its type.
    names = sorted(layout, key=lambda name: -layout[name][0].itemsize)
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _DTYPE_NAMES[str(dtype)], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    missing = set(layout)
    with replacing(Path(path), end) as temporary, temporary.open("rb+") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors:
            if name not in missing or layout[name] != (tensor.dtype, tuple(tensor.shape)):
                raise ValueError(f"tensor {name} ({tensor.dtype}, {tuple(tensor.shape)}) is not what was announced")
            missing.remove(name)
            file.seek(8 + len(text) + entries[name]["data_offsets"][0])
            file.write(memoryview(_as_bytes(tensor)))
        if missing:
            raise ValueError(f"{len(missing)} announced tensors did not come, first {min(missing)}")


# As safetensors calls them; keyed by name, so that torch is imported only where tensors are at hand.
_DTYPE_NAMES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.uint8": "U8",
}


def _as_bytes(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _metadata(header: Header | None, extra: dict[str, str] | None) -> dict[str, str]:
    if header is not None:
        Header.from_metadata(header.to_metadata())
    return {"format": "pt", **(extra or {}), **(header.to_metadata() if header else {})}


def check_space(path: Path, needed: int) -> None:
    """Raise CheckpointError if the disk of ``path`` has no room for so many bytes; its folder need not be there yet."""
    needed += FREE_SPACE_MARGIN
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{path.parent} has {free >> 20} MiB free, {path.name} needs {needed >> 20} MiB; "
            "free some space or write elsewhere."
        )


@contextlib.contextmanager
def replacing(path: Path, needed: int) -> Iterator[Path]:
    """Give an empty file beside ``path`` to write to, which takes its place if the body succeeds and else vanishes."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path, needed)
        temporary.touch()
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (CheckpointError, ValueError):
        raise
    except Exception as error:
        # safetensors raises its own types, a full disk among them.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise CheckpointError(
            f"{path.name} could not be written to {path.parent} ({reason}); nothing was kept."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
