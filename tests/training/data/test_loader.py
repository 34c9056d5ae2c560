"""Samples are read ahead of the step that needs them, in the order of the steps, and errors come with their step."""

from __future__ import annotations

import threading
import time

import pytest
from fpsattention.training.data.loader import Loader


class Slow:
    """Samples that take some time to read; counts how often each is read."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.reads = seconds, []

    def __len__(self):
        return 100

    def __getitem__(self, index):
        self.reads.append(index)
        time.sleep(self.seconds)
        if index == 13:
            raise OSError("a broken disk")
        return {"name": f"sample {index}", "thread": threading.current_thread().name}


def pairs(step):
    return [(0, 2 * step), (0, 2 * step + 1)]


def names(samples):
    return [sample["name"] for sample in samples]


def test_gives_the_samples_of_the_step_from_another_thread():
    with Loader(Slow(), pairs) as loader:
        for step in range(5):
            samples = loader.get(step)
            assert names(samples) == [f"sample {2 * step}", f"sample {2 * step + 1}"]
            assert samples[0]["thread"] == "samples"


def test_reads_ahead_and_no_further_than_asked():
    data = Slow()
    with Loader(data, pairs, depth=2) as loader:
        loader.get(0)
        deadline = time.monotonic() + 5
        while len(data.reads) < 6 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert data.reads == list(range(6))


def test_waiting_is_counted_and_hidden_behind_the_work():
    data = Slow(0.02)
    with Loader(data, pairs) as loader:
        loader.get(0)
        first = loader.waited
        assert first >= 0.03
        for step in range(1, 6):
            time.sleep(0.1)  # the step's work, longer than the reading
            loader.get(step)
        assert loader.waited - first < 0.05


def test_a_jump_starts_again_there():
    with Loader(Slow(), pairs) as loader:
        loader.get(0)
        assert names(loader.get(30)) == ["sample 60", "sample 61"]
        assert names(loader.get(2)) == ["sample 4", "sample 5"]
        assert names(loader.get(2)) == ["sample 4", "sample 5"]


def test_an_error_is_raised_by_its_own_step_only():
    with Loader(Slow(), pairs) as loader:
        for step in range(6):
            loader.get(step)
        with pytest.raises(OSError, match="broken disk"):
            loader.get(6)
        assert names(loader.get(7)) == ["sample 14", "sample 15"]


def test_closing_ends_the_thread():
    loader = Loader(Slow(0.01), pairs)
    loader.get(0)
    loader.close()
    assert "samples" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(ValueError, match="closed"):
        loader.get(1)
    Loader(Slow(), pairs).close()  # never used


def test_depth_must_be_positive():
    with pytest.raises(ValueError, match="depth is 0"):
        Loader(Slow(), pairs, depth=0)
