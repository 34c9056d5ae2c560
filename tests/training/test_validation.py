"""Validation: what it feeds the model, and that sharing it among processes changes nothing."""

from __future__ import annotations

import pytest
import torch
from fpsattention.training.distributed import World
from fpsattention.training.flops import forward_flops
from fpsattention.training.model import starting_model
from fpsattention.training.names import WanShape
from fpsattention.training.sparse import DENSE
from fpsattention.training.validation import _share, validate


class Share(World):
    """One of several processes, without the others: their sums are added afterwards."""

    most = 0

    def gather_objects(self, value):
        return [value, self.most]

    def sum_(self, tensors):
        self.__dict__["seen"] = [t.clone() for t in tensors]


@pytest.fixture
def model(make_config):
    model = starting_model(make_config().model, 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    return model


def test_shares_of_three_processes_add_up_to_one(model, samples, make_config):
    attention = make_config().attention.resolved()
    alone = validate(model, samples, sigmas=(0.95, 0.4), attention=attention, batch=2)
    sums, forwards = torch.zeros(4, dtype=torch.float64), []
    for rank in range(3):
        world = Share(rank=rank, size=3)
        world.__dict__["most"] = 1
        forwards.append(len(_share(samples, 2, world)))
        validate(model, samples, sigmas=(0.95, 0.4), attention=attention, batch=2, world=world)
        sums += world.__dict__["seen"][0]
    assert forwards == [1, 1, 1]
    assert sums[-1] == 5
    assert float(sums[-2] / sums[-1] / 2) == pytest.approx(alone.density, rel=1e-12)
    assert (sums[:-2] / sums[-1]).tolist() == pytest.approx([alone.per_sigma[0.95], alone.per_sigma[0.4]], rel=1e-6)


def test_processes_without_a_sample_run_as_many_forwards_as_the_others(samples):
    world = Share(rank=5, size=8)
    world.__dict__["most"] = 3
    assert _share(samples, 4, world) == [([0], 0.0)] * 3


def test_samples_with_a_condition_reach_the_model_whole(model, samples):
    seen = []

    def remember(self, x, level, text, image=None, return_dict=False):
        seen.append((tuple(x.shape), None if image is None else tuple(image.shape)))
        return (torch.zeros_like(x[:, :16]),)

    model.forward = remember.__get__(model)
    for sample in samples:
        sample |= {"condition": torch.zeros(20, 3, 8, 8), "image": torch.zeros(257, 1280)}
    validate(model, samples[:2], sigmas=(0.5,), attention=DENSE)
    assert seen == [((2, 36, 3, 8, 8), (2, 257, 1280))]


def test_flops_are_those_of_the_published_shapes():
    small, large = WanShape(1536, 8960, 30), WanShape(5120, 13824, 40)
    assert forward_flops(small, 21 * 30 * 52) == pytest.approx(282.8e12, rel=1e-3)
    assert forward_flops(large, 21 * 45 * 80) == pytest.approx(6521e12, rel=1e-3)
    dense, sparse = (forward_flops(large, 21 * 45 * 80, density) for density in (1.0, 0.15))
    assert (dense - sparse) / dense == pytest.approx(0.85 * 0.718, rel=2e-3)
