"""What happened while sampling: one Run per sampler call, one Step per sigma, kept for the report.

A Recorder is a plain object that every clone of a patched model shares. Runs are told apart by the prompt and the node
that was executing, so two samplers on one model do not mix.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..kernels.grid import TokenGrid
from .clock import BlockClock
from .sentence import one_line

logger = logging.getLogger(__name__)

# Enough for a workflow with several stages; older runs are dropped so that a long session does not grow.
MAX_RUNS = 16
# Densities on the device that may wait to be read: each holds half a kilobyte there.
_MANY = 4096


@dataclass(frozen=True)
class HeadCall:
    """What decided a model call that a head table served: the token grid, the table's band, per sample the branch of
    guidance, and the blocks that stayed dense."""

    grid: TokenGrid
    band: int
    branches: tuple[int, ...]
    dense: frozenset[int]


@dataclass
class Step:
    """One sigma of one run; ``sparse`` and ``dense`` count self-attention calls, ``skipped`` model calls that computed
    nothing. ``work`` adds up the densities of the sparse calls.

    ``seconds`` is what the step took, ``blocks`` what each of its transformer blocks took (self-attention,
    cross-attention, feed-forward), summed over its evaluations and empty where that cannot be told. ``heads`` counts
    the model calls that a head table served. ``layers`` holds per block the sum of the densities that an online
    selector chose, and their number.
    """

    sigma: float
    index: int | None
    phase: int
    attention: str
    granularity: str | None = None
    window: str = ""
    planned_density: float = 1.0
    backend: str = ""
    grid: tuple[int, int, int] = (0, 0, 0)
    prefix: int = 0
    suffix: int = 0
    tile: tuple[int, int, int] | None = None
    tiles: int = 0
    evaluations: int = 0
    sparse: int = 0
    dense: int = 0
    skipped: int = 0
    work: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    blocks: list[float] = field(default_factory=list)
    heads: Counter[HeadCall] = field(default_factory=Counter)
    layers: dict[int, tuple[float, int]] = field(default_factory=dict)
    _unread: list[tuple[int | None, Any]] = field(default_factory=list, repr=False)

    @property
    def density(self) -> float:
        """The share of query-key pairs that were computed, dense calls counted as 1; 1 if there were none."""
        waiting = self.planned_density * len(self._unread)
        return (self.work + waiting + self.dense) / self.calls if self.calls else 1.0

    @property
    def calls(self) -> int:
        """The number of self-attention calls that were computed."""
        return self.sparse + self.dense

    def add_block(self, block: int, seconds: float) -> None:
        """Count ``seconds`` for ``block``."""
        if block >= len(self.blocks):
            self.blocks += [0.0] * (block + 1 - len(self.blocks))
        self.blocks[block] += seconds

    def attend(self, density: float | None) -> None:
        """Count a call that ran sparse with ``density``, None where that cannot be told."""
        self.sparse += 1
        self.work += self.planned_density if density is None else density

    def attend_online(self, block: int | None, density: Any) -> None:
        """Count a sparse call of ``block`` (None: a control block) whose selector chose ``density``, a scalar on the
        device, which is not waited for."""
        self.sparse += 1
        self._unread.append((block, density))
        if len(self._unread) >= _MANY:
            self.read()

    def read(self) -> None:
        """Read the densities that are still on the device. Raises RuntimeError, as torch does, if the device broke."""
        waiting, self._unread = self._unread, []
        if not waiting:
            return
        # Counted as planned until they are known.
        self.work += self.planned_density * len(waiting)
        values = torch.stack([density.detach().reshape(()) for _, density in waiting]).tolist()
        self.work += sum(values) - self.planned_density * len(waiting)
        for (block, _), value in zip(waiting, values):
            if block is not None:
                total, calls = self.layers.get(block, (0.0, 0))
                self.layers[block] = total + value, calls + 1

    def skip(self, reason: str) -> None:
        """Count a model call that computed nothing."""
        self.skipped += 1
        self.reasons.setdefault(reason, 0)

    def decline(self, reason: str, calls: int = 1) -> None:
        """Count ``calls`` that stayed dense although the phase is sparse."""
        self.dense += calls
        self.reasons[reason] = self.reasons.get(reason, 0) + calls


@dataclass
class Run:
    """One sampler call; ``stopped`` says why it ended before its last step, ``built`` holds what is ready for its model
    calls, ``marked`` says whether any block of its model came by a mark of ours."""

    prompt_id: str | None
    node_id: str | None
    list_index: int | None
    number: int
    steps: dict[float, Step] = field(default_factory=dict)
    sample_sigmas: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    finished: bool = False
    stopped: str | None = None
    marked: bool = False
    built: dict = field(default_factory=dict, repr=False)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report and say it in the log, once per run."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            logger.info("FPSAttention: %s", sentence)

    @property
    def work(self) -> float:
        """The run's attention work as a share of dense: the mean density over all self-attention calls."""
        calls = sum(step.calls for step in self.steps.values())
        return sum(step.density * step.calls for step in self.steps.values()) / calls if calls else 1.0


class Recorder:
    """Keeps the last runs of one patched model and all of its clones."""

    def __init__(self) -> None:
        self.runs: deque[Run] = deque(maxlen=MAX_RUNS)
        self._open: Run | None = None
        self._count = 0
        self._step: Step | None = None
        self._mark = 0.0
        self.clock = BlockClock()

    def begin(self) -> Run:
        """Open a new run; one that was left open (an interrupted sampler) is closed first."""
        self.end()
        prompt_id, node_id, list_index = executing_node()
        self._count += 1
        self._open = Run(prompt_id, node_id, list_index, self._count)
        self.runs.append(self._open)
        return self._open

    def current(self) -> Run:
        """Return the open run; opens one for a caller that samples without announcing it."""
        return self._open or self.begin()

    def end(self, error: BaseException | None = None) -> None:
        """Close the open run, if any; ``error`` is what ended it early."""
        if self._open is not None:
            if error is None:
                self.clock.wait()
            self._read(self._open)
            self._open.finished = True
            # The run stays for the report; what it ran need not.
            self._open.built.clear()
            if error is not None:
                self._open.stopped = stop_reason(error)
        self._clock(None)
        self.clock.finish()
        self._open = None

    def _read(self, run: Run) -> None:
        try:
            for step in run.steps.values():
                step.read()
        except RuntimeError as error:
            run.note(f"what the selectors chose could not be read from the device ({one_line(error)[:80]}).")

    def step(self, sigma: float, make: Callable[[], Step]) -> Step:
        """Return the open run's step for ``sigma``, made if it is new; its clock runs from now on."""
        steps, key = self.current().steps, round(sigma, 6)
        step = steps.get(key)
        if step is None:
            step = steps[key] = make()
        step.evaluations += 1
        self._clock(step)
        return step

    def _clock(self, step: Step | None) -> None:
        now = time.perf_counter()
        if self._step is not None:
            self._step.seconds += now - self._mark
        self._step, self._mark = step, now

    def select(self, node_ids: set[str] | None) -> list[Run]:
        """Return the runs that the nodes ``node_ids`` made in their latest prompt, oldest first; None means all."""
        if node_ids is None:
            return list(self.runs)
        chosen = [run for run in self.runs if run.node_id in node_ids]
        latest = {run.node_id: run.prompt_id for run in chosen}
        return [run for run in chosen if run.prompt_id == latest[run.node_id]]


def stop_reason(error: BaseException) -> str:
    """Return in words what ended a run early."""
    name = type(error).__name__
    if name == "InterruptProcessingException":
        return "cancelled"
    if name == "OutOfMemoryError" or "out of memory" in str(error).lower():
        return "out of memory"
    return name


def executing_node() -> tuple[str | None, str | None, int | None]:
    """Return prompt id, node id and list index of what the host executes now, each None where it cannot be told."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return None, None, None
    context = get_executing_context()
    if context is None:
        return None, None, None
    return context.prompt_id, context.node_id, context.list_index
