"""The optimizers: who is decayed, torch's AdamW to the bit, and torchao's 8-bit one close to it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fpsattention.training.config import ConfigError, OptimSection
from fpsattention.training.model import random_model
from fpsattention.training.names import WanShape
from fpsattention.training.optimizer import BLOCK, holds_eight_bits, make_optimizer, parameter_groups
from torch import nn

STEPS = 10


def section(**changes) -> OptimSection:
    return OptimSection(**({"steps": STEPS, "warmup": 0, "lr": 1e-3, "weight_decay": 0.1} | changes))


@pytest.fixture(scope="module")
def wan():
    return random_model(WanShape(128, 64, 1, text_dim=16), 0)


@pytest.fixture(scope="module")
def start():
    """A model of 8-bit and full-precision moments."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 32), nn.LayerNorm(32), nn.Linear(32, 128), nn.Linear(128, 64))


@pytest.fixture(scope="module")
def gradients(start):
    """Ten steps of gradients whose size differs from weight to weight, as real ones do."""
    generator = torch.Generator().manual_seed(0)
    spread = [10 ** (-2 * torch.rand(p.shape, generator=generator)) for p in start.parameters()]
    mean = [torch.randn(p.shape, generator=generator) for p in start.parameters()]
    noise = [[torch.randn(p.shape, generator=generator) for p in start.parameters()] for _ in range(STEPS)]
    return [[1e-3 * s * (m + n) for s, m, n in zip(spread, mean, step)] for step in noise]


def trained(start, gradients, make):
    model = copy.deepcopy(start)
    optimizer = make(model)
    for step in gradients:
        for parameter, gradient in zip(model.parameters(), step):
            parameter.grad = gradient.clone()
        optimizer.step()
    return model, optimizer


def test_matrices_are_decayed_and_nothing_else(wan):
    names = {id(p): name for name, p in wan.named_parameters()}
    matrices, others = parameter_groups(wan, 0.1)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    decayed, kept = ({names[id(p)] for p in group["params"]} for group in (matrices, others))
    assert decayed | kept == set(names.values())
    assert {"patch_embedding.weight", "blocks.0.attn1.to_q.weight", "proj_out.weight"} <= decayed
    assert {"scale_shift_table", "blocks.0.scale_shift_table", "blocks.0.attn1.norm_q.weight", "proj_out.bias"} <= kept
    assert not any("norm" in name or name.endswith("bias") for name in decayed)


def test_adamw_is_torchs_own_to_the_bit(start, gradients):
    def own(model):
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, fused=True)

    a, _ = trained(start, gradients, own)
    b, _ = trained(start, gradients, lambda model: make_optimizer(section(), model))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_frozen_parameters_take_no_part(start, name):
    model = copy.deepcopy(start).requires_grad_(False)
    model[3].requires_grad_(True)
    optimizer = make_optimizer(section(name=name), model)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
        id(model[3].weight),
        id(model[3].bias),
    ]


def test_nothing_to_train_is_said(start):
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(section(), copy.deepcopy(start).requires_grad_(False))


def test_eight_bit_moments_stay_close_to_full_precision(start, gradients):
    full, _ = trained(start, gradients, lambda model: make_optimizer(section(), model))
    coarse, optimizer = trained(start, gradients, lambda model: make_optimizer(section(name="adamw-8bit"), model))
    moved = sum((p - s).square().sum() for p, s in zip(full.parameters(), start.parameters())) ** 0.5
    apart = sum((p - q).square().sum() for p, q in zip(full.parameters(), coarse.parameters())) ** 0.5
    # Codes of the first moment are up to 1/128 of their block's largest value apart, those of the second 1/256.
    assert apart / moved < 0.05
    for name, p in coarse.named_parameters():
        moment = optimizer.state[p]["exp_avg"]
        assert (type(moment) is not torch.Tensor) == holds_eight_bits(p), name
        if holds_eight_bits(p):
            assert moment.codes.dtype is torch.uint8 and moment.scale.numel() * BLOCK == p.numel()


def test_eight_bits_for_whole_rows_of_large_matrices_only():
    eight = {
        (1536, 1536): True,
        (32, 128): True,
        (16, 128): False,
        (64, 64): False,
        (8960,): False,
        (1, 6, 1536): False,
    }
    assert {shape: holds_eight_bits(torch.empty(shape, device="meta")) for shape in eight} == eight


def test_rates_are_set_as_plain_numbers(start, gradients):
    model = copy.deepcopy(start)
    optimizer = make_optimizer(section(name="adamw-8bit"), model)
    for rate in (0.0, 1e-3):
        before = model[3].bias.detach().clone()
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(model.parameters(), gradients[0]):
            parameter.grad = gradient.clone()
        optimizer.step()
        assert [group["lr"] for group in optimizer.param_groups] == [rate, rate]
        assert torch.equal(before, model[3].bias) == (rate == 0)


def test_eight_bit_moments_need_an_epsilon():
    # A second moment far below its block's largest is rounded to zero; then eps alone is what an update is divided by.
    with pytest.raises(ValueError, match="eps is 1e-15 but 8-bit moments need at least 1e-08"):
        section(name="adamw-8bit", eps=1e-15)
    section(eps=1e-15)


def test_missing_torchao_is_said_with_the_line_that_installs_it(start, monkeypatch):
    for name in ("torchao", "torchao.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"optim.name = 'adamw-8bit' needs torchao.*pip install 'torchao"):
        make_optimizer(section(name="adamw-8bit"), start)
    make_optimizer(section(), start)


def test_diffusers_and_transformers_are_told_of_no_torchao():
    # In a process of its own: whoever imports them first decides what they find.
    code = (
        "import fpsattention.training.model\n"
        "from diffusers.utils import is_torchao_available as for_diffusers\n"
        "from transformers.utils import is_torchao_available as for_transformers\n"
        "print(for_diffusers(), for_transformers())"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.split() == ["False", "False"], done.stderr
