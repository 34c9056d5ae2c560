"""The clock of blocks on a card, played by events that count: when they are read, used again, and where."""

from __future__ import annotations

import pytest
import torch
from fpsattention.nodes.clock import BlockClock
from fpsattention.nodes.record import Recorder, Step


class Card:
    """Two cards of which the first is the current one; ``made`` are the events, ``waited`` the devices waited for."""

    def __init__(self, monkeypatch):
        self.made, self.waited, self.started, self.passed = [], [], True, True
        card = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing
                card.made.append(self)
                self.device = None

            def record(self, stream=None):
                device = torch.device("cuda:0") if stream is None else stream
                assert self.device in (None, device), "an event stays on the card where it was first recorded"
                self.device = device

            def query(self):
                return card.passed

            def elapsed_time(self, end):
                assert self.device == end.device
                return 2.0

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: torch.device(device or "cuda:0"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: self.waited.append(device))
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: self.started)


@pytest.fixture
def card(monkeypatch):
    return Card(monkeypatch)


def step() -> Step:
    return Step(1.0, 0, 0, "dense")


def test_blocks_on_a_device_that_cannot_be_timed():
    clock, one = BlockClock(), step()
    clock.prepare(torch.device("meta"))
    clock.add(one, 0, clock.moment(), clock.moment())
    clock.wait()
    clock.finish()
    assert clock.kind is None and one.blocks == []


def test_events_are_read_when_they_have_passed(card):
    """Nothing is waited for, and each is used again."""
    clock, one = BlockClock(), step()
    for _ in range(3000):
        clock.prepare(torch.device("cuda:0"))
        clock.add(one, 1, clock.moment(), clock.moment())
    clock.finish()
    assert one.blocks[0] == 0 and one.blocks[1] == pytest.approx(3000 * 2e-3)
    assert len(card.made) <= 2 * 512 + 2 and not card.waited


def test_events_stand_on_the_models_own_card(card):
    """Not on the current one; and none of one card's is recorded on another, where that would be an error."""
    clock, steps = BlockClock(), {"cuda:1": step(), "cuda:0": step()}
    for turn in range(4):
        device = "cuda:0" if turn % 2 else "cuda:1"
        clock.prepare(torch.device(device))
        for _ in range(700):
            start = clock.moment()
            assert start.device == torch.device(device)
            clock.add(steps[device], 0, start, clock.moment())
    clock.finish()
    assert [one.blocks[0] for one in steps.values()] == pytest.approx([1400 * 2e-3] * 2)


@pytest.mark.parametrize("device, started, error, waits", [
    ("cuda:1", True, None, ["cuda:1"]),
    ("cuda:1", False, None, []),
    ("cuda:1", True, RuntimeError("out of memory"), []),
    ("cpu", True, None, []),
    (None, True, None, []),
])  # fmt: skip
def test_the_end_of_a_run_waits_for_the_models_card_only(card, device, started, error, waits):
    recorder = Recorder()
    recorder.begin()
    if device is not None:
        recorder.clock.prepare(torch.device(device))
    card.started = started
    recorder.end(error)
    assert card.waited == [torch.device(each) for each in waits]
