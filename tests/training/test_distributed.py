"""The processes of a run: what cannot be is said in a sentence before anything waits."""

from __future__ import annotations

import pytest
import torch
from fpsattention.training.distributed import DeviceError, World, open_world


def test_more_processes_than_gpus_are_refused_before_they_meet(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="process 3 of this machine has no GPU, torch sees 2; start one process per"):
        open_world("auto")


def test_one_process_asks_nobody():
    world = World()
    world.barrier()
    assert world.any(True) and not world.any(False)
    assert world.gather_objects("a") == ["a"]
