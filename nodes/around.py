"""What our nodes do around a model call and around each of its blocks, kept out of everybody's compiled graphs.

Compiled code must hold nothing of ours: what we do reads what changes from step to step, and the host's compile node
drops the guards that would notice. So as soon as somebody compiles in this process, everything here but the model
itself runs with the compiler switched off, and an override stands in every call, also where it only passes on. The
functions that a graph meets are the same for all models and runs: a new one would be traced again.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

# The host's own names (comfy.patcher_extension); a host test holds them equal.
DIFFUSION_MODEL = "diffusion_model"
OVERRIDE = "optimized_attention_override"


class Inputs(NamedTuple):
    """One call of the diffusion model: ``options`` are its transformer_options, ``conditions`` its further keyword
    arguments, ``previous`` another node's attention override."""

    model: Any
    x: Any
    context: Any
    time_dim_concat: Any
    options: dict
    conditions: dict
    previous: Callable | None


class ModelCall(Protocol):
    """What is kept while the model runs; ``attends`` is True if ``override`` does more than to pass on, ``previous`` is
    another node's override."""

    attends: bool
    previous: Callable | None

    def enter(self, block: int) -> bool:
        """A block begins; False if ``leave`` shall not be called."""
        ...

    def leave(self, block: int) -> None:
        """A block is over."""
        ...

    def fail(self) -> None:
        """A block that was entered raised an error."""
        ...

    def override(self, func: Callable, *args: Any, **kwargs: Any) -> Any:
        """The host's hook around an attention call."""
        ...


@dataclass(frozen=True)
class Around:
    """One node's part: ``begin`` gives the state of a model call, or None where nothing is to be done; ``end`` takes it
    after a call that raised nothing. The state stands in the call's transformer_options under ``key``."""

    key: str
    begin: Callable[[Inputs], ModelCall | None]
    end: Callable[[Any], None]

    def wrapper(self) -> Callable:
        """Return the wrapper for the host's diffusion model."""

        def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
            return _current["run"](self, executor, *args, **kwargs)

        return wrapper

    def block_patch(self, index: int, inner: Callable | None) -> Callable:
        """Return the replace patch for block ``index``; ``inner`` is what stood there before."""
        key = self.key

        def patch(args: dict, extra: dict) -> dict:
            return _current["mark"](key, index, inner, args, extra)

        return patch


def _run(
    around: Around,
    executor: Any,
    x: Any,
    timestep: Any,
    context: Any,
    clip_fea: Any = None,
    time_dim_concat: Any = None,
    transformer_options: dict | None = None,
    **kwargs: Any,
) -> Any:
    """Run the model, which is all that a compiler may see of this."""
    options = {} if transformer_options is None else transformer_options
    call = _current["begin"](around, executor.class_obj, x, context, clip_fea, time_dim_concat, options, kwargs)
    if call is None:
        return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
    try:
        out = executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
    finally:
        _current["restore"](around.key, options, call)
    _current["end"](around, call)
    return out


def _begin(
    around: Around, model: Any, x: Any, context: Any, clip_fea: Any, time_dim_concat: Any, options: dict, kwargs: dict
) -> ModelCall | None:
    previous = options.get(OVERRIDE)
    call = around.begin(Inputs(model, x, context, time_dim_concat, options, {**kwargs, "clip_fea": clip_fea}, previous))
    if call is not None:
        options[around.key] = call
        if is_kept_out():
            options[OVERRIDE] = _kept_out_override(around.key)
        elif call.attends:
            options[OVERRIDE] = call.override
    return call


def _restore(key: str, options: dict, call: Any) -> None:
    """Put another node's override back."""
    options.pop(key, None)
    if call.previous is None:
        options.pop(OVERRIDE, None)
    else:
        options[OVERRIDE] = call.previous


def _end(around: Around, call: ModelCall) -> None:
    around.end(call)


def _mark(key: str, index: int, inner: Callable | None, args: dict, extra: dict) -> dict:
    """Run block ``index`` between two marks."""
    call = _current["enter"](key, index, args, extra)
    try:
        out = inner(args, extra) if inner is not None else extra["original_block"](args)
    except BaseException:
        if call is not None:
            _current["fail"](call)
        raise
    if call is not None:
        _current["leave"](call, index)
    return out


def _enter(key: str, index: int, args: dict, extra: dict) -> ModelCall | None:
    # Some nodes that bring a forward of their own hand the options over in the second place.
    options = args.get("transformer_options") or extra.get("transformer_options") or {}
    call = options.get(key)
    return call if call is not None and call.enter(index) else None


def _leave(call: ModelCall, index: int) -> None:
    call.leave(index)


def _fail(call: ModelCall) -> None:
    call.fail()


_current: dict[str, Callable] = {
    "run": _run, "mark": _mark, "begin": _begin, "restore": _restore, "end": _end, "enter": _enter, "leave": _leave,
    "fail": _fail,
}  # fmt: skip
_SEES_THE_MODEL = ("run", "mark")
_kept_out = False


def is_kept_out() -> bool:
    """True once compilers in this process are kept out of what is done here."""
    return _kept_out


def keep_compilers_out() -> None:
    """Switch compilers off around everything here but the model, once somebody may compile; to be called before a run.

    Importing the compiler takes a second, so only where somebody has done that.
    """
    global _kept_out
    if _kept_out or "torch._dynamo" not in sys.modules:
        return
    for name, function in _current.items():
        if name in _SEES_THE_MODEL:
            _skip(function)
        _current[name] = torch.compiler.disable(function, recursive=name not in _SEES_THE_MODEL)
    _kept_out = True


def _skip(function: Callable) -> None:
    """Let the compiler pass over ``function`` for good: without this it looks at it anew in every call, only to find
    that it is disabled. Not public, so newer versions may lack it."""
    try:
        from torch._dynamo.decorators import skip
    except ImportError:
        return
    skip(function)


@functools.cache
def _kept_out_override(key: str) -> Callable:
    """Return the override that a graph meets: the same in every call, it asks the call at hand."""

    def override(func: Callable, *args: Any, **kwargs: Any) -> Any:
        call = (kwargs.get("transformer_options") or {}).get(key)
        return func(*args, **kwargs) if call is None else call.override(func, *args, **kwargs)

    return torch.compiler.disable(override)
