"""Sequence parallelism (Ulysses): the processes of a group share the tokens of one sample.

Between attentions a process holds a run of tokens with all heads; inside attention it holds all tokens of some heads,
so 3D tiles stay whole and the sparse op does not know. Everything is differentiable, and each process ends up with the
gradient of its own tokens: summing over the group gives the gradient of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..model import WanTransformer3DModel


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share a sample's tokens."""

    group: dist.ProcessGroup
    rank: int
    size: int

    def lengths(self, tokens: int) -> list[int]:
        """Return how many of the tokens each process holds: equal but for one."""
        return [len(part) for part in torch.arange(tokens).tensor_split(self.size)]

    def mine(self, x: Tensor, dim: int) -> Tensor:
        """Return this process's tokens of a tensor that every process holds in full."""
        return x.tensor_split(self.size, dim)[self.rank]

    def to_heads(self, x: Tensor, tokens: int) -> Tensor:
        """Return (B, tokens, H / size, D) for this process's (B, s, H, D)."""
        lengths = self.lengths(tokens)
        batch, own, heads, width = x.shape
        parts = x.unflatten(2, (self.size, heads // self.size)).permute(2, 0, 1, 3, 4)
        unit = batch * (heads // self.size) * width
        flat = _Exchange.apply(parts.reshape(-1), [own * unit] * self.size, [n * unit for n in lengths], self.group)
        shape = (batch, -1, heads // self.size, width)
        return torch.cat([part.reshape(shape) for part in flat.split([n * unit for n in lengths])], 1)

    def to_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """Return (B, s, H, D) for this process's (B, tokens, H / size, D): the inverse of ``to_heads``."""
        lengths = self.lengths(tokens)
        batch, _, heads, width = x.shape
        unit = batch * heads * width
        parts = torch.cat([part.reshape(-1) for part in x.split(lengths, 1)])
        own = lengths[self.rank]
        flat = _Exchange.apply(parts, [n * unit for n in lengths], [own * unit] * self.size, self.group)
        return flat.view(self.size, batch, own, heads, width).permute(1, 2, 0, 3, 4).flatten(2, 3)

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        """Return all tokens (B, tokens, C) of tensors (B, s, C); backward gives each process its own tokens' share."""
        return _Gather.apply(x, self.lengths(tokens), self)


class _Exchange(torch.autograd.Function):
    """All-to-all of a flat tensor; backward is the exchange in the other direction."""

    @staticmethod
    def forward(ctx, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        out = x.new_empty(sum(received))
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        sent, received = ctx.sizes
        out = grad.new_empty(sum(sent))
        dist.all_to_all_single(out, grad.contiguous(), sent, received, group=ctx.group)
        return out, None, None, None


class _Gather(torch.autograd.Function):
    """All processes' tokens in one tensor. Every process computes the same loss from it, so nothing is summed back."""

    @staticmethod
    def forward(ctx, x: Tensor, lengths: list[int], group: SequenceGroup) -> Tensor:
        ctx.lengths, ctx.rank = lengths, group.rank
        # Sizes differ by one token at most: pad to the longest, since every backend gathers equal sizes.
        longest = max(lengths)
        padded = torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=group.group)
        return torch.cat([part[:, :n] for part, n in zip(parts, lengths)], 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.split(ctx.lengths, 1)[ctx.rank], None, None


def share_tokens(model: WanTransformer3DModel, group: SequenceGroup) -> None:
    """Make the model work on this process's tokens from its first block to its last layer.

    Patches are embedded in full (cheap), split before block 0, and gathered after the output projection; rotary tables
    are split with them. Attention is the processors' business (``training.attention``).
    """
    tokens: dict[str, int] = {}

    def split_rope(_module, _args, tables):
        tokens["all"] = tables[0].shape[1]
        return tuple(group.mine(table, 1) for table in tables)

    def split_tokens(_module, args):
        return (group.mine(args[0], 1), *args[1:])

    def gather_tokens(_module, _args, out):
        return group.gather(out, tokens["all"])

    model.rope.register_forward_hook(split_rope)
    model.blocks[0].register_forward_pre_hook(split_tokens)
    model.proj_out.register_forward_hook(gather_tokens)
