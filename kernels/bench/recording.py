"""What a card would be given: runs the launchers without one, and compiles what they launch.

Inside :func:`recording` every launch is noted instead of run, on tensors that hold no data (device ``meta``). Triton
itself then specializes the arguments (alignment, constants, descriptors) and compiles for the card that was named,
because it is told that such a card is there. Needs no GPU and no driver; imports triton only when used.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import triton_runtime


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch: the kernel, its grid, its arguments and its options."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple
    options: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.fn.__name__

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time arguments that were given by name."""
        return {name: value for name, value in self.options.items() if name in self.kernel.arg_names}


@contextlib.contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Yield the list that every launch is added to, while launchers believe in a card of ``capability`` (90: 9.0)."""
    launches: list[Launch] = []

    def launch(kernel: Any, grid: tuple[int, ...], tensor: torch.Tensor, *args: Any, **options: Any) -> None:
        del tensor
        launches.append(Launch(kernel, tuple(grid), args, options))

    stand_ins = {
        "launch": launch,
        "capability": lambda device: capability,
        "available": lambda device=None: None,
        "interpreted": lambda: False,
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(_replaced(name, stand_in))
        yield launches


@contextlib.contextmanager
def _replaced(name: str, stand_in: Any) -> Iterator[None]:
    """Replace a function of ``triton_runtime`` wherever the package holds it."""
    original = getattr(triton_runtime, name)
    package = __package__.rpartition(".")[0]
    holders = [m for key, m in list(sys.modules.items()) if key.startswith(package) and getattr(m, name, 0) is original]
    for module in holders:
        setattr(module, name, stand_in)
    try:
        yield
    finally:
        for module in holders:
            setattr(module, name, original)


class _Card:
    """A driver for one card that is not there: what Triton asks before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        """Return the card's number: its capability, for compiled kernels are kept by device and no two share any."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Return a stream's handle."""
        return 0

    def get_current_target(self) -> Any:
        """Return what Triton compiles for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


@contextlib.contextmanager
def _card(capability: int) -> Iterator[None]:
    from triton.runtime import driver

    before = driver._active
    driver.set_active(_Card(capability))
    try:
        yield
    finally:
        driver.set_active(before)


def specialization(launch: Launch, capability: int) -> str:
    """Return what Triton would compile for ``launch``, as text: equal texts are one kernel. Compiles nothing."""
    from triton import knobs

    keys: list[str] = []

    def note(*, key: str, **_: Any) -> bool:
        keys.append(key)
        return True  # "somebody else compiles it"

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = note
    try:
        with _card(capability):
            launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
    finally:
        knobs.runtime.jit_cache_hook = before
    return f"{launch.name} {capability} {keys[0]}"


def compiled(launch: Launch, capability: int) -> Any:
    """Return Triton's compiled kernel for ``launch`` on a card of ``capability``; raises what the compiler raises."""
    with _card(capability):
        return launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
