"""Failures that end a command: which they are, and the one sentence that a user reads of each."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable


class NonFiniteError(RuntimeError):
    """Loss or gradient was not finite several steps in a row; the message is one sentence."""


class VaeError(ValueError):
    """A file that is not a Wan 2.1 VAE, in one sentence."""


def expected_errors() -> tuple[type[Exception], ...]:
    """Return the errors that a command tells in one sentence; whatever else is raised is a bug, with its traceback.

    Raises ImportError where torch or pydantic is missing; diffusers is not needed.
    """
    from safetensors import SafetensorError

    from ..kernels.attention import BackendError
    from ..kernels.checkpoint import HeaderError
    from .comfy_host import ComfyHostError
    from .config import ConfigError
    from .data.errors import DataError
    from .distributed import DeviceError
    from .names import ModelError
    from .state import SnapshotError

    return (
        BackendError, ComfyHostError, ConfigError, DataError, DeviceError, HeaderError, ImportError, ModelError,
        NonFiniteError, OSError, SafetensorError, SnapshotError, VaeError,
    )  # fmt: skip


def exit_code(work: Callable[[], int], *, nonfinite: int = 2) -> int:
    """Return what a command's work returns, or 2 after an expected error, told on stderr; NonFiniteError has its own.

    What the work imports may be missing too: that is a sentence with the remedy.
    """
    try:
        expected = expected_errors()
    except ImportError as error:
        return _told(error, 2)
    try:
        return work()
    except NonFiniteError as error:
        return _told(error, nonfinite)
    except expected as error:
        return _told(error, 2)


def _told(error: Exception, code: int) -> int:
    sys.stderr.write(f"error: {sentence(error)}\n")
    return code


def sentence(error: Exception) -> str:
    """Return what a user is told of an error: ours are sentences already, the others are completed to one."""
    if isinstance(error, ImportError):
        said = " ".join(str(error).split())
        fix = "install what the trainer needs: pip install -r training/requirements.txt"
        return said if "requirements.txt" in said else f"{said}; {fix}"
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space, or write elsewhere" if full else "check this path and its permissions"
        return f"{where}{error.strerror}; {fix}"
    return str(error)
