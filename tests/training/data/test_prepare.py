"""What is made ready before the first step: by one rank, with the text encoder where the run computes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from fpsattention.training import prepare
from fpsattention.training.data import text
from fpsattention.training.prepare import prepare_data


@dataclass(frozen=True)
class Rank:
    """One of two ranks that take turns; a barrier is passed at once."""

    is_main: bool
    local_rank: int = 0
    size: int = 2

    @property
    def rank(self) -> int:
        return 0 if self.is_main else 1

    def barrier(self) -> None:
        pass


@pytest.fixture
def loaded(monkeypatch) -> list[torch.device]:
    """The devices that an encoder was loaded on."""
    devices: list[torch.device] = []

    class FakeEncoder:
        def __init__(self, folder, length, device):
            devices.append(device)

        def __call__(self, caption):
            return torch.ones(3, 4096, dtype=torch.bfloat16)

    monkeypatch.setattr(text, "_Umt5", FakeEncoder)
    return devices


@pytest.fixture
def config(make_config, good_clip, vae_file, tmp_path):
    encoder = tmp_path / "umt5"
    encoder.mkdir()
    (encoder / "config.json").write_text("{}")
    data = {
        "videos": str(good_clip), "frames": 5, "height": 32, "width": 32, "samples_per_clip": 2,
        "val_samples_per_clip": 1, "captions": "empty", "text_encoder": str(encoder), "text_length": 8,
        "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    return make_config(data=data, vae__path=str(vae_file))


def test_the_first_rank_alone_loads_the_encoder_on_the_device_of_the_run(config, loaded, monkeypatch):
    device = torch.device("cpu", 0)  # the default has no number
    monkeypatch.setattr(prepare, "pick_device", lambda *_: device)
    first, second = (prepare_data(config, Rank(is_main), progress=False) for is_main in (True, False))
    assert loaded == [device]
    assert torch.equal(first.empty_text, second.empty_text) and first.empty_text.shape == (8, 4096)
    assert len(first.train) == len(second.train) == 2
