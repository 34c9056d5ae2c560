"""One model call: which attention call is self-attention, whether it may run sparse, and how long its blocks take.

A ``Call`` lives as long as one call of the diffusion model. The block patch marks where each main block begins and
ends; the first attention call in between is its self-attention. A control block of VACE has no patch point: it runs
right behind its main block, and its self-attention is told by the shape of its tensors. Nothing here reads a device
value or caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..kernels.attention import fps_attention
from ..kernels.attention.dispatch import HEAD_DIMS
from ..kernels.grid import TokenGrid
from .clock import BlockClock
from .record import HeadCall, Step

TAKEN = "another node took over the attention of these blocks"
REPLACED = "another node replaced the patch of these blocks"
SKIPPED = "another node skipped the model in this step"
CONTROL_TAKEN = "another node took over the attention of VACE's control blocks"
CONTROL_ALIKE = "video and text are equally long, so VACE's control blocks cannot be told apart"
CONTROL_UNKNOWN = "the head table does not know VACE's control blocks"
OUTSIDE = "attention outside the main blocks is left dense"


@dataclass(frozen=True)
class HeadChoice:
    """What a head table chose for a model call: the token grid, the table's band, the branch of guidance per sample
    (one for all where they do not differ), and the density of every block."""

    grid: TokenGrid
    band: int
    branches: tuple[int, ...]
    densities: list[float]


@dataclass(frozen=True)
class Sparse:
    """What a sparse phase runs: the plan of every main block (None: the user, or a head table, wants it dense), and of
    the control blocks behind a main block. ``tokens`` is the length of the self-attention sequence.

    ``control`` maps a main block to the plan of the control block that follows it (None: the head table does not know
    it), ``repeats`` says how often each of them runs in one call. ``alike`` is True where other tensors may have the
    shape of the video's (text of the same length), ``known_layout`` False for a model class whose extra tokens may
    stand anywhere. ``heads`` is what a head table chose, where there is one.
    """

    plans: list
    tokens: int
    backend: str
    known_layout: bool = True
    alike: bool = False
    control: dict[int, Any] = field(default_factory=dict)
    repeats: int = 1
    heads: HeadChoice | None = None


class Call:
    """The state of one call of the diffusion model; without ``sparse`` everything runs as the host has it, and its
    ``dense`` self-attention calls are counted, ``why_dense`` if the schedule has it otherwise."""

    def __init__(
        self,
        step: Step,
        blocks: int,
        clock: BlockClock,
        sparse: Sparse | None = None,
        previous: Callable | None = None,
        dense: int = 0,
        why_dense: str | None = None,
    ):
        self.step = step
        self.dense = dense
        self.why_dense = why_dense
        self.total = blocks
        self.clock = clock
        self.sparse = sparse
        self.previous = previous
        self.blocks = 0
        self.attended = False
        self.outside = 0
        self.control_calls = 0
        self._inside = False
        self._since: Any = None
        self._plan = None
        self._behind: int | None = None
        self._density: Any = None
        self._reason: str | None = None
        self._ran: list[int] = []

    @property
    def attends(self) -> bool:
        """True in a sparse phase, where attention calls are for us."""
        return self.sparse is not None

    def enter(self, block: int) -> bool:
        """A block begins: its first attention call is its self-attention. False if it had begun already."""
        if self._inside:
            return False
        self._inside = True
        self._behind = None
        self._density = None
        self._reason = None
        self._plan = self.sparse.plans[block] if self.sparse is not None else None
        self.blocks += 1
        self._since = self.clock.moment()
        return True

    def leave(self, block: int) -> None:
        """A block is over: count what its self-attention did."""
        self.clock.add(self.step, block, self._since, self.clock.moment())
        self._inside = False
        if self.sparse is None:
            return
        if self._plan is not None:
            self.step.decline(TAKEN)
        elif self._reason is not None:
            self.step.decline(self._reason)
        elif self.sparse.plans[block] is None:
            self.step.dense += 1
        else:
            self._count(block, self.sparse.plans[block])
        self._plan = None
        self._behind = block if block in self.sparse.control else None

    def _count(self, block: int, plan: Any) -> None:
        """Count a main block's sparse call."""
        self._ran.append(block)
        if self._density is not None:
            self.step.attend_online(block, self._density)
        else:
            heads = self.sparse.heads
            self.step.attend(plan.density if heads is None else heads.densities[block])

    def fail(self) -> None:
        """A block raised an error: it counts for nothing, and another node may run it again."""
        self._inside = False
        self._plan = None
        self.blocks -= 1

    def override(self, func: Callable, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's hook: run a block's self-attention sparse, hand everything else on unchanged."""
        self.attended = True
        if self.sparse is not None:
            out = self._run(q, k, v, args, kwargs)
            if out is not None:
                return out
        if self.previous is not None:
            return self.previous(func, q, k, v, *args, **kwargs)
        return func(q, k, v, *args, **kwargs)

    def _run(self, q: Any, k: Any, v: Any, args: tuple, kwargs: dict) -> Any:
        plan, self._plan = self._plan, None
        if plan is not None:
            self._reason = self._dense_reason(q, k, v, args, kwargs, plan)
            if self._reason is not None and q.ndim == k.ndim == 3 and k.shape[1] != q.shape[1] == self.sparse.tokens:
                # Cross-attention came first: the self-attention before it never asked.
                self._reason = TAKEN
            return self._attend(q, k, v, args, kwargs, plan) if self._reason is None else None
        if self._inside or q.shape != k.shape or q.ndim != 3 or q.shape[1] != self.sparse.tokens or self.sparse.alike:
            return None
        # Behind a main block, a call of the video's own length is the self-attention of its control block.
        if self._behind is None:
            self.outside += 1
            return None
        self.control_calls += 1
        plan = self.sparse.control[self._behind]
        reason = CONTROL_UNKNOWN if plan is None else self._dense_reason(q, k, v, args, kwargs, plan)
        if reason is not None:
            self.step.decline(reason)
            return None
        self._density = None
        out = self._attend(q, k, v, args, kwargs, plan)
        if self._density is None:
            self.step.attend(plan.density)
        else:
            self.step.attend_online(None, self._density)
        return out

    def _dense_reason(self, q: Any, k: Any, v: Any, args: tuple, kwargs: dict, plan: Any) -> str | None:
        heads = kwargs.get("heads", args[0] if args else None)
        return dense_reason(q, k, v, heads, args, kwargs, plan, self.sparse.known_layout)

    def _attend(self, q: Any, k: Any, v: Any, args: tuple, kwargs: dict, plan: Any) -> Any:
        b, s, _ = q.shape
        shape = (b, s, kwargs.get("heads", args[0] if args else None), -1)
        q, k, v = q.view(shape), k.view(shape), v.view(shape)
        lists = plan.lists_for(q, k, v)
        if plan.lists is None:
            # A number on the device: it is read when the run is over.
            self._density = lists.density
        return fps_attention(q, k, v, plan, backend=self.sparse.backend, lists=lists).reshape(b, s, -1)

    def settle(self, marked: bool = False) -> None:
        """The model call is over: count what stayed dense, and the blocks that never reached the block patch.

        In a dense phase only the blocks' marks tell that the model ran; ``marked`` says that this run's come through.
        """
        if not self.attended and not self.blocks and (self.sparse is not None or marked):
            # Nothing was computed, so nothing stayed dense either.
            self.step.skip(SKIPPED)
            return
        if self.sparse is None:
            if self.why_dense is None:
                self.step.dense += self.dense
            else:
                self.step.decline(self.why_dense, self.dense)
            return
        if (heads := self.sparse.heads) is not None:
            dense = frozenset(range(self.total)).difference(self._ran)
            self.step.heads[HeadCall(heads.grid, heads.band, heads.branches, dense)] += 1
        missed = self.total - self.blocks
        if missed:
            self.step.decline(REPLACED, missed)
        extra = self.outside - missed
        if extra > 0:
            self.step.decline(OUTSIDE, extra)
        control = len(self.sparse.control) * self.sparse.repeats - self.control_calls
        if control > 0 and not missed:
            self.step.decline(CONTROL_ALIKE if self.sparse.alike else CONTROL_TAKEN, control)


def dense_reason(
    q: Any, k: Any, v: Any, heads: int | None, args: tuple, kwargs: dict, plan: Any, known_layout: bool
) -> str | None:
    """Return why a self-attention call must stay dense, or None if it may run sparse."""
    if kwargs.get("skip_reshape") or q.ndim != 3:
        return "q, k and v are not laid out as (batch, tokens, channels)"
    if kwargs.get("mask", args[1] if len(args) > 1 else None) is not None:
        return "the call has an attention mask"
    if not heads or q.shape[-1] % heads:
        return f"{q.shape[-1]} channels do not split into {heads} heads"
    if q.shape != k.shape or q.shape != v.shape:
        return "q, k and v differ in shape"
    if q.shape[-1] // heads not in HEAD_DIMS:
        supported = " and ".join(map(str, HEAD_DIMS))
        return f"the head dimension is {q.shape[-1] // heads}, {supported} are supported"
    tokens, expected = q.shape[1], plan.grid.tokens
    if tokens != expected:
        if not known_layout:
            return f"{tokens - expected} extra tokens in a model class that is not known"
        return f"the sequence has {tokens} tokens where {expected} were expected from the latent"
    return None
