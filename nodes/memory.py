"""What a node gives back when a run of its own was broken off: the frames that hold models, and the GPU's memory."""

from __future__ import annotations

import traceback

import torch


def clear_frames(error: BaseException) -> None:
    """Empty the frames that ``error`` and what led to it passed; the lines of its traceback stay.

    The host's own frame and a failing node's traceback hold each other. A clone of the model in there lives until a
    garbage collection, which takes it together with the clone it was made from: then the host has nothing to put into
    the clone's place among its loaded models, and warns of a leak with every prompt.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` says that the GPU is full."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


def free_memory() -> None:
    """Let the host unload its models and give back what it holds."""
    try:
        from comfy.model_management import soft_empty_cache, unload_all_models
    except ImportError:
        return
    unload_all_models()
    soft_empty_cache()
