"""With every pair of tokens seen, our attention is diffusers' dense one: output, gradients and whole training curves.

Density 100 %, no FP8, float32 on a CPU: what remains is the order of sums. The tolerance is relative to the norm of
each parameter's gradient; float32 has 6e-8, a softmax over hundreds of tokens and some layers leave 1e-5.
"""

from __future__ import annotations

import copy

import pytest
import torch
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.attention import attention_state
from fpsattention.training.loop import fit
from fpsattention.training.model import random_model
from fpsattention.training.names import WanShape
from fpsattention.training.sparse import SparseAttention, latent_grid

GRADIENT = 1e-5  # of the norm of a parameter's gradient
CURVE = 1e-5  # of the loss
FULL = "0 bf16 - all all all"
LATENT = (2, 16, 4, 16, 20)


def scaled(model: torch.nn.Module) -> torch.nn.Module:
    """Give the last layer weights, and every layer's attention something to choose between."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        torch.nn.init.normal_(model.proj_out.weight, std=0.05, generator=generator)
        for block in model.blocks:
            block.attn1.norm_q.weight.mul_(3.0)
    return model


def gradients(model, attention: SparseAttention | None, inputs, target) -> tuple[torch.Tensor, dict]:
    if attention is None:
        out = model(*inputs, return_dict=False)[0]
        (out - target).square().mean().backward()
    else:
        with attention_state(model).step(attention, 0.7, LATENT):
            out = model(*inputs, return_dict=False)[0]
            (out - target).square().mean().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("slots", [16, 64])
def test_gradient_of_the_whole_model_is_diffusers_dense_one(slots):
    ours = scaled(random_model(WanShape(dim=256, ffn_dim=320, layers=3, text_dim=32), seed=0))
    theirs = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(LATENT, generator=generator) for _ in range(2))
    text = torch.randn(2, 7, 32, generator=generator)
    inputs = (x, torch.tensor([700.0, 700.0]), text)
    attention = SparseAttention(Schedule.parse(FULL), slots=slots, backend="reference")
    assert attention.plans(latent_grid(LATENT), 2).density(0.7) == 1.0
    out, mine = gradients(ours, attention, inputs, target)
    expected, dense = gradients(theirs, None, inputs, target)
    assert (out - expected).norm() <= GRADIENT * expected.norm()
    assert mine.keys() == dense.keys() and len(mine) == sum(1 for _ in theirs.parameters())
    whole = torch.cat([g.flatten() for g in dense.values()]).norm()
    for name, gradient in dense.items():
        # A gradient that is itself a rounding error (a key's bias moves no softmax) is held to the whole one.
        limit = max(float(gradient.norm()), 1e-3 * float(whole))
        assert (mine[name] - gradient).norm() <= GRADIENT * limit, name


def test_training_curves_overlay(make_config, tmp_path):
    """Thirty steps of training: the losses of a run at 100 % are those of the dense run."""
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "latent": torch.randn(16, 3, 8, 8, generator=generator).cumsum(1) / 2,
            "text": torch.zeros(2, 16),
            "name": str(i),
        }
        for i in range(6)
    ]
    curves = {}
    for name, schedule in (("full", FULL), ("dense", "dense"), ("sparse", "0 fp8 x1 1 2 2")):
        config = make_config(
            attention__schedule=schedule, optim__steps=30, optim__decay="constant", output__dir=str(tmp_path / name),
            checkpoint__dir=str(tmp_path / name / "c"), checkpoint__every=0, output__report=False,
        )  # fmt: skip
        model = scaled(random_model(WanShape(128, 64, 2, text_dim=16), seed=0))
        curves[name] = torch.tensor([r["loss"] for r in fit(config, samples, model=model, progress=None).records])
    full, dense, sparse = (curves[name] for name in ("full", "dense", "sparse"))
    assert len(full) == 30 and dense[-5:].mean() < 0.98 * dense[:5].mean()
    assert ((full - dense) / dense).abs().max() <= CURVE
    # The figure is not zero because nothing matters: a sparse run leaves the curve.
    assert ((sparse - dense) / dense).abs().max() > 100 * CURVE
