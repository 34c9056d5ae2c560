"""Prints the machine-code table at the end of a test run, also of one that passes."""

from __future__ import annotations

import pytest

TABLE = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Write the table if the compiled tests ran."""
    del exitstatus
    table = config.stash.get(TABLE, None)
    if table:
        terminalreporter.section("machine code, compiled ahead of time")
        terminalreporter.write_line(table)


@pytest.fixture(scope="session")
def print_table(pytestconfig):
    """A function that keeps a text for the end of the run."""

    def keep(text: str) -> None:
        pytestconfig.stash[TABLE] = text

    return keep
