"""Import torchao only where a configuration asks for it, without its start-up noise.

Diffusers and transformers import torchao wherever it is installed, for quantized models that the trainer does not load;
that costs every command seconds and pages of warnings, so they are told that there is none.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from types import ModuleType

# Extensions built for other systems and deprecations inside torchao: nothing that a user of the trainer can act on.
_NOISY = ("torchao", "torch.utils._pytree")


def torchao(part: str, setting: str) -> ModuleType:
    """Return the module ``torchao.<part>``; raises ConfigError, naming ``setting``, where torchao is missing."""
    try:
        with _quiet():
            return importlib.import_module(f"torchao.{part}")
    except ModuleNotFoundError as error:
        from .config import ConfigError

        if error.name is None or error.name.split(".")[0] != "torchao":
            raise
        raise ConfigError(
            f"{setting} needs torchao, which is not installed; pip install 'torchao>=0.18', or leave {setting} out"
        ) from None


def keep_torchao_from_diffusers() -> None:
    """Let diffusers and transformers find no torchao if they have not looked yet; call it before importing them."""
    if "torchao" in sys.modules or importlib.util.find_spec("torchao") is None:
        return
    sys.modules["torchao"] = None  # type: ignore[assignment]  # find_spec() answers None for it
    try:
        for name in ("diffusers", "transformers"):
            if importlib.util.find_spec(name) is not None:
                found = importlib.import_module(f"{name}.utils.import_utils")
                # transformers 5 looks when it is asked for the first time, and remembers.
                getattr(found, "is_torchao_available", bool)()
    finally:
        del sys.modules["torchao"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
