"""Tests pretend to have other cards and other packages: what can run is asked again after each."""

from __future__ import annotations

import pytest
from fpsattention.kernels.attention import forget_backends


@pytest.fixture(autouse=True)
def _ask_again():
    forget_backends()
    yield
    forget_backends()
