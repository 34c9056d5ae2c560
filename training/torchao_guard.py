"""Import torchao only where a configuration asks for it, without its start-up noise."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from types import ModuleType

from .config import ConfigError

# Extensions built for other systems and deprecations inside torchao: nothing that a user of the trainer can act on.
_NOISY = ("torchao", "torch.utils._pytree")


def torchao(part: str, setting: str) -> ModuleType:
    """Return the module ``torchao.<part>``; raises ConfigError, naming ``setting``, where torchao is missing."""
    try:
        with _quiet():
            return importlib.import_module(f"torchao.{part}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torchao":
            raise
        raise ConfigError(
            f"{setting} needs torchao, which is not installed; pip install 'torchao>=0.15', or leave {setting} out"
        ) from None


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
