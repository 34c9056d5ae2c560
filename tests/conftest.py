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


# Texts for the end of a test run, also of one that passes: (title, text) each.
SHOWN = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def show_at_end(pytestconfig):
    """A function that keeps a title and a text for the end of the run, over however many processes it is spread."""
    kept = pytestconfig.stash.setdefault(SHOWN, [])
    return lambda title, text: kept.append((title, text))


def pytest_sessionfinish(session):
    """Hand what a worker of pytest-xdist has kept to the process that writes the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["shown"] = session.config.stash.get(SHOWN, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Take what a worker has kept."""
    del error
    node.config.stash.setdefault(SHOWN, []).extend(getattr(node, "workeroutput", {}).get("shown", []))


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Write what tests have kept."""
    del exitstatus
    for title, text in config.stash.get(SHOWN, []):
        terminalreporter.section(title)
        terminalreporter.write_line(text)


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
