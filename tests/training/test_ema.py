"""The average of the trained weights: its formula, and the exchange with the model."""

from __future__ import annotations

import pytest
import torch
from fpsattention.training.ema import Ema
from torch import nn


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    made[0].bias.requires_grad_(False)
    return made


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def move(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator))


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_average_is_the_recurrence(model):
    ema = Ema(model, 0.9)
    want = {name: tensor.double() for name, tensor in weights(model).items()}
    for seed in range(5):
        move(model, seed)
        ema.update()
        want = {name: 0.9 * tensor + 0.1 * weights(model)[name] for name, tensor in want.items()}
    for name, tensor in ema.tensors.items():
        torch.testing.assert_close(tensor, want[name].float())


def test_holds_trainable_parameters_only(model):
    assert set(Ema(model, 0.9).tensors) == {"0.weight", "1.weight", "1.bias", "2.weight", "2.bias"}


def test_swapped_shows_the_average_and_restores_the_bits(model):
    ema = Ema(model, 0.5)
    move(model, 0)
    ema.update()
    trained, average = weights(model), {name: tensor.clone() for name, tensor in ema.tensors.items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    with ema.swapped():
        inside = weights(model)
        assert all(torch.equal(inside[name], average[name]) for name in average)
        assert torch.equal(inside["0.bias"], trained["0.bias"])
        assert [p.data_ptr() for p in model.parameters()] == pointers
    assert equal(weights(model), trained) and equal(dict(ema.tensors), average)


def test_an_error_inside_restores_too(model):
    ema = Ema(model, 0.5)
    move(model, 0)
    trained = weights(model)
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    assert equal(weights(model), trained)


def test_keep_leaves_the_average(model):
    ema = Ema(model, 0.5)
    move(model, 0)
    ema.update()
    ema.keep()
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in ema.tensors.items())


def test_averages_may_lie_elsewhere(model):
    here, there = Ema(model, 0.9), Ema(model, 0.9, device="cpu")
    move(model, 0)
    here.update()
    there.update()
    assert equal(here.tensors, there.tensors)
    assert all(a.data_ptr() != p.data_ptr() for a, p in zip(there.tensors.values(), model.parameters()))
