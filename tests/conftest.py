"""What all tests share: one torch thread, repeatable property tests, and the card of tests that need one."""

from __future__ import annotations

import os

import pytest
import torch

try:
    import hypothesis
except ImportError:  # kernel tests run on machines that have torch and pytest alone
    hypothesis = None
else:
    # The same examples in every run, and no deadline: a busy machine is no failure.
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40, database=None)
    hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads on a busy machine can be a hundred times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def require_gpu() -> torch.device:
    """Return the CUDA device; skip the test without one, or fail it where ``REQUIRE_GPU=1`` demands one.

    With ``GPU_STANDIN=1`` the CPU takes its place, to try the tests themselves (with ``TRITON_INTERPRET=1``).
    """
    if os.environ.get("GPU_STANDIN") == "1":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail("REQUIRE_GPU=1, but torch finds no CUDA device")
    pytest.skip("torch finds no CUDA device")


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The CUDA device of tests that need one."""
    return require_gpu()
