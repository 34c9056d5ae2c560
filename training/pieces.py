"""Tensors on disk, in torch's distributed checkpoint format: every process writes and reads the part that it holds.

What is stored are whole tensors cut into rectangles. Who held which does not matter when they are read: any other
number of processes takes the parts that it needs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.tensor import DTensor

# Said of every process that saves or loads alone, which is what is meant here.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

# What torch adds to a tensor of a checkpoint, at most: its own header and padding.
OVERHEAD = 4096


class PiecesError(OSError):
    """Tensors could not be written or read; the message says what torch said of it, process by process."""


@dataclass(frozen=True)
class Piece:
    """The rectangle of a tensor that this process holds: its values, where they start, and the size of the whole."""

    local: torch.Tensor
    start: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, tensor: torch.Tensor) -> Piece:
        """Return the piece of a plain tensor (all of it) or a DTensor; values are shared, not copied."""
        if isinstance(tensor, DTensor):
            local = tensor.to_local()
            start = tuple(tensor.__create_chunk_list__()[0].offsets) if local.numel() else (0,) * tensor.ndim
            return cls(local, start, tuple(tensor.shape))
        if tensor.ndim == 0:  # torch reads tensors without dimensions differently from version to version
            tensor = tensor.reshape(1)
        return cls(tensor.detach(), (0,) * tensor.ndim, tuple(tensor.shape))

    @property
    def whole_bytes(self) -> int:
        """Bytes of the whole tensor, over all processes."""
        return torch.Size(self.size).numel() * self.local.element_size()

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """Start and size, as torch's checkpoints want them."""
        return ChunkStorageMetadata(offsets=torch.Size(self.start), sizes=self.local.shape)


def write_pieces(folder: Path, pieces: Mapping[str, Piece], group: dist.ProcessGroup | None) -> None:
    """Write named pieces into a folder; with a group, its processes together, what several hold only once.

    Raises PiecesError on all of them when the disk fails one.
    """
    # Without copying ahead: that would open a context on the first GPU from a thread of every process.
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, per_thread_copy_ahead=0)
    try:
        dcp.save({}, storage_writer=writer, planner=_Writing(pieces), process_group=group, no_dist=group is None)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        # A stream that cannot take more bytes is a RuntimeError in torch, which says nothing of the disk.
        if all(isinstance(cause, (OSError, RuntimeError)) for cause in causes):
            raise PiecesError(_said(error)) from error
        raise RuntimeError(_said(error)) from error


def read_pieces(folder: Path, pieces: Mapping[str, Piece]) -> None:
    """Fill named pieces from a folder, in place; every process reads for itself.

    Raises PiecesError when torch cannot, KeyError for a name that is not stored.
    """
    try:
        dcp.load({}, storage_reader=_Folder(folder), planner=_Reading(pieces), no_dist=True)
    except CheckpointException as error:
        raise PiecesError(_said(error)) from error


def stored_tensors(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return size and dtype of every tensor in a folder, by name."""
    found = _Folder(folder).read_metadata().state_dict_metadata
    return {
        name: (tuple(tensor.size), tensor.properties.dtype)
        for name, tensor in found.items()
        if isinstance(tensor, TensorStorageMetadata)
    }


class _Folder(dcp.FileSystemReader):
    """A folder whose table of contents is read once, however many tensors are asked for one by one."""

    def read_metadata(self, *_args, **_kwargs) -> Metadata:
        return _contents(str(self.path), (Path(self.path) / ".metadata").stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _contents(folder: str, _changed: int) -> Metadata:
    return dcp.FileSystemReader(folder).read_metadata()


class _Writing(DefaultSavePlanner):
    """Says what this process holds; deduplication and the table of contents are torch's."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = pieces

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, piece in self.pieces.items():
            if not piece.local.numel():
                continue
            data = TensorWriteData(
                chunk=piece.chunk,
                properties=TensorProperties(dtype=piece.local.dtype),
                size=torch.Size(piece.size),
            )
            index = MetadataIndex(name, torch.Size(piece.start))
            items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.pieces[index.fqn].local


class _Reading(DefaultLoadPlanner):
    """Asks for the parts of stored tensors that this process holds."""

    def __init__(self, pieces: Mapping[str, Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = pieces

    def create_local_plan(self) -> LoadPlan:
        items = []
        for name, piece in self.pieces.items():
            if not piece.local.numel():
                continue
            stored = self.metadata.state_dict_metadata[name]
            items += create_read_items_for_chunk_list(name, stored, [piece.chunk])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.pieces[index.fqn].local


def _said(error: BaseException) -> str:
    """Return the first line of what went wrong on every process, torch's tracebacks left out."""
    failures = getattr(error, "failures", None)
    if not failures:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
    causes: dict[str, list[int]] = {}
    for rank, (cause, _) in failures.items():
        causes.setdefault(_said(cause), []).append(rank)
    return "; ".join(f"{cause} (process {', '.join(map(str, ranks))})" for cause, ranks in causes.items())
