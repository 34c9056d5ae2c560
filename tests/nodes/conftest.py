"""The fake host for tests that need no ComfyUI."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

collect_ignore_glob = ["fake_host.py", "interleaved.py"]


@pytest.fixture(scope="session")
def host():
    """The module ``fake_host``."""
    path = Path(__file__).parent / "fake_host.py"
    spec = importlib.util.spec_from_file_location("fps_fake_host", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fps_fake_host"] = module
    spec.loader.exec_module(module)
    return module
