"""Keep a torchvision that was built for another torch from making diffusers and transformers unimportable.

Both import torchvision wherever it is installed, and the trainer uses nothing of it. A build that does not fit the
installed torch raises on import; it is hidden then, so that both libraries see none and go without.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys

import torch

from .torchao_guard import keep_torchao_from_diffusers

_log = logging.getLogger(__name__)


def hide_broken_torchvision() -> bool:
    """Return True if torchvision is installed but cannot be imported with this torch; it is hidden then."""
    hidden = _hide()
    keep_torchao_from_diffusers()  # only now: transformers looks for both at once
    return hidden


def _hide() -> bool:
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"] is None
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
        return False
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        _log.debug("torchvision does not fit torch %s and is left out: %s", torch.__version__, error)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # find_spec() answers None for it from now on
    return True
