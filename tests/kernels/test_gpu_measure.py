"""Measuring on a card: the strongest dense baseline takes part, the limit holds, memory is given back."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from fpsattention.kernels.calibration_file import checked
from fpsattention.kernels.cards import card_name, driver_version
from fpsattention.kernels.contestants import Size
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.measure import measure

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_a_card(cuda):
    """A stand-in is a processor, which tests/kernels/test_measure.py covers."""
    if cuda.type != "cuda":
        pytest.skip("a stand-in has no card to measure")


def test_a_card_is_measured(cuda):
    torch.cuda.empty_cache()
    gc.collect()
    before = torch.cuda.memory_allocated()
    measure(Size(TokenGrid(5, 30, 52), 2, 128, torch.bfloat16, cuda, seconds=5.0))  # compiles
    started = time.monotonic()
    result = measure(Size(TokenGrid(21, 30, 52), 12, 128, torch.bfloat16, cuda, seconds=5.0))
    assert time.monotonic() - started < 30
    entry = result.entry()
    assert checked(entry) == entry and entry["card"] == torch.cuda.get_device_name() == card_name(cuda)
    assert entry["driver"] == driver_version(cuda) and entry["tokens"] == 32760 and entry["heads"] == 12
    rows = {row.name for row in result.rows if row.timing}
    assert "torch" in rows and (torch.version.hip or "cudnn" in rows or any(row.note for row in result.rows))
    assert all(row.timing.count >= 3 for row in result.rows if row.timing)
    times = [row.timing.median for row in result.ours()]
    assert times[0] > times[-1], "less density must cost less"
    gc.collect()
    # Plans stay cached; q, k, v and the clock's buffer do not.
    assert torch.cuda.memory_allocated() - before < 64 * 2**20


def test_more_than_the_card_holds_is_measured_on_fewer_heads(cuda):
    result = measure(Size(TokenGrid(81, 90, 160), 256, 128, torch.bfloat16, cuda, seconds=20.0))
    assert result.size.heads < 256 and result.notes
    assert torch.cuda.memory_allocated() < torch.cuda.get_device_properties(cuda).total_memory / 2
