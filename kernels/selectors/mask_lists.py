"""Block lists from masks that a call has just made: on the device, with fixed shapes and nothing read back."""

from __future__ import annotations

import torch

from ..block_lists import BlockLists, Layout

# What a chunk of heads may hold beside the lists. All heads at once would need several GB at 720p.
CHUNK_BYTES = 512 * 2**20


def wants_gradient(*tensors: torch.Tensor) -> bool:
    """Return whether a backward can follow a call on ``tensors``; if not, nobody needs the transposed lists."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def head_chunks(batch: int, heads: int, bytes_per_head: int) -> list[slice]:
    """Return slices that cut ``heads`` so that a chunk of ``batch`` samples stays below ``CHUNK_BYTES``."""
    size = max(1, min(heads, CHUNK_BYTES // max(1, batch * bytes_per_head)))
    return [slice(first, min(heads, first + size)) for first in range(0, heads, size)]


def tile_rows(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return ``x (B, S, H, D)`` in tile order, ``(B, H, tiles, width, D)`` in its own dtype; dead rows are 0."""
    tiles, width = layout.index.shape
    batch, _, heads, dim = x.shape
    picked = x.permute(0, 2, 1, 3).index_select(2, layout.index.clamp_min(0).reshape(-1))
    picked = picked.reshape(batch, heads, tiles, width, dim)
    return picked.masked_fill((layout.index < 0)[:, :, None], 0.0) if has_dead_rows(layout) else picked


def has_dead_rows(layout: Layout) -> bool:
    """Return whether tiles differ in their live rows, which is known without a look at the device."""
    return layout.uniform == 0 or layout.uniform != layout.last


class ListMaker:
    """Collects the masks of a call's heads, chunk by chunk, and gives their lists: one pattern per sample and head.

    ``longest`` is what no list of a query tile exceeds. Lists are ascending; what lies behind a count is the number of
    some tile and never read. Without ``transposed`` the lists have no backward (``BlockLists.forward_only``).
    """

    def __init__(self, layout: Layout, batch: int, heads: int, longest: int, transposed: bool) -> None:
        tiles, device = layout.index.shape[0], layout.index.device

        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros((batch, heads, tiles, *shape), dtype=torch.int32, device=device)

        self.layout, self.transposed = layout, transposed
        self.ids, self.count = empty(longest), empty()
        self.key_ids, self.key_count = empty(tiles if transposed else 1), empty()
        self.pairs = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, heads: slice, mask: torch.Tensor) -> None:
        """Take bool ``mask (B, n, tiles, tiles)`` of the ``n`` heads ``heads``: query tile (row) sees key tile."""
        self.ids[:, heads], self.count[:, heads] = _lists(mask, self.ids.shape[-1])
        if self.transposed:
            keys = mask.transpose(-1, -2)
            self.key_ids[:, heads], self.key_count[:, heads] = _lists(keys, self.key_ids.shape[-1])
        # Sums of at most a sequence's tokens, so float32 holds them exactly; their products need 64 bits.
        seen = (mask.float() @ self.layout.live.float()).long()
        self.pairs = self.pairs + (seen * self.layout.live.long()).sum()

    def lists(self, tokens: int) -> BlockLists:
        """Return the lists of all heads, with their exact density in a sequence of ``tokens``."""
        batch, heads = self.ids.shape[:2]
        pattern_of_head = torch.arange(batch * heads, dtype=torch.int32, device=self.ids.device).view(batch, heads)
        return BlockLists(
            self.ids.flatten(0, 1),
            self.count.flatten(0, 1),
            pattern_of_head,
            self.key_ids.flatten(0, 1),
            self.key_count.flatten(0, 1),
            density=self.pairs.float() / float(batch * heads * tokens**2),
            forward_only=not self.transposed,
        )


def _lists(mask: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``ids`` int32 ``(..., rows, longest)`` and ``count`` int32 ``(..., rows)`` of the true columns."""
    columns = mask.shape[-1]
    upto = mask.cumsum(-1, dtype=torch.int32)
    count = upto[..., -1]
    column = torch.arange(columns, dtype=torch.int32, device=mask.device)
    # A permutation: first what is seen, then the rest. Each place is written once, so the result is one in every run.
    place = torch.where(mask, upto - 1, count[..., None] + column - upto)
    ids = torch.empty_like(place).scatter_(-1, place.long(), column.expand_as(place))
    return ids[..., :longest], count
