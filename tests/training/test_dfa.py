"""The denoising factor against numerical derivatives of the samplers' updates, and in a step of training."""

from __future__ import annotations

import math

import pytest
import torch
from fpsattention.kernels.outlook import sampler_sigmas
from fpsattention.training.assemble import assemble
from fpsattention.training.distributed import World
from fpsattention.training.flow import Flow, sample_generator, shifted
from fpsattention.training.loss_weight import DenoisingFactor, ddpm_factor, denoising_factor
from fpsattention.training.step import plan_step, train_step
from hypothesis import given
from hypothesis import strategies as st


@given(st.floats(1e-3, 0.999), st.floats(0.2, 20.0))
def test_it_is_the_slope_of_sigma_over_the_trajectory(u, shift):
    h = 1e-6
    slope = (shifted(u + h, shift) - shifted(u - h, shift)) / (2 * h)
    assert math.isclose(denoising_factor(shifted(u, shift), shift), slope, rel_tol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_it_is_what_a_real_samplers_velocity_enters_with(shift):
    """The derivative of an Euler step by the velocity, found numerically on the sampler's own sigmas."""
    steps = 2000
    sigmas = sampler_sigmas(steps, shift)

    def euler(x, v, i):
        return x + (sigmas[i + 1] - sigmas[i]) * v

    for i in (0, 10, 700, 1500, steps - 2):
        entering = abs(euler(0.3, 1.0 + 1e-3, i) - euler(0.3, 1.0 - 1e-3, i)) / 2e-3
        middle = (sigmas[i] + sigmas[i + 1]) / 2
        assert math.isclose(denoising_factor(middle, shift), steps * entering, rel_tol=2e-3)


def test_ddpms_form_is_what_its_update_subtracts():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alphas, products = 1 - betas, (1 - betas).cumprod(0)

    def update(x, eps, t):  # the mean of x_{t-1}, by way of the predicted x_0 and the posterior
        alpha, bar, before = alphas[t], products[t], products[t - 1]
        start = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        return (before.sqrt() * betas[t] * start + alpha.sqrt() * (1 - before) * x) / (1 - bar)

    for t in (1, 10, 300, 999):
        slope = (update(0.7, 1e-4, t) - update(0.7, -1e-4, t)) / 2e-4
        assert math.isclose(ddpm_factor(float(alphas[t]), float(products[t])), -float(slope), rel_tol=1e-6)


@pytest.mark.parametrize("flow", [Flow(3.0), Flow(5.0, "uniform"), Flow(8.0, std=0.5)])
def test_its_mean_over_what_training_draws_is_one(flow):
    weight = DenoisingFactor(flow)
    drawn = [weight(flow.draw_sigma(sample_generator(0, 0, i))) for i in range(4000)]
    assert abs(sum(drawn) / len(drawn) - 1) < 4 * torch.tensor(drawn).std() / 4000**0.5
    assert abs(DenoisingFactor(Flow(1.0))(0.3) - 1) < 1e-12


def test_a_step_weighs_every_samples_gradient_and_logs_both_losses(make_config, samples):
    def step(**changes):
        config = make_config(optim__batch=1, optim__global_batch=4, optim__clip=1e9, **changes)
        run = assemble(config, World(), torch.device("cpu"))
        grads = {}
        run.optimizer.step = lambda: grads.update({n: p.grad.clone() for n, p in run.model.named_parameters()})
        with torch.no_grad():
            torch.nn.init.normal_(run.model.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
        places, passes = plan_step(run, 0, samples)
        record = train_step(run, places, passes, [samples[p.index] for one in passes for p in one.places])
        return record, places, grads

    plain, places, _ = step()
    weighted, _, grads = step(loss__weighting="denoising-factor")
    factors = [DenoisingFactor(Flow(3.0))(place.sigma) for place in places]
    assert max(factors) / min(factors) > 1.2
    assert weighted["losses"] == plain["losses"] and weighted["loss"] == plain["loss"] and "weighted_loss" not in plain
    want = sum(factor * loss for factor, loss in zip(factors, plain["losses"])) / 4
    assert math.isclose(weighted["weighted_loss"], want, rel_tol=1e-5)
    # By the gradients of single samples, each made the only one that counts.
    name, total = "blocks.0.ffn.net.2.weight", 0.0
    from fpsattention.training import loss_weight

    original = loss_weight.DenoisingFactor.__call__
    for chosen, factor in zip(places, factors):
        loss_weight.DenoisingFactor.__call__ = lambda _, sigma, at=chosen.sigma: float(sigma == at)
        try:
            total = total + factor * step(loss__weighting="denoising-factor")[2][name]
        finally:
            loss_weight.DenoisingFactor.__call__ = original
    torch.testing.assert_close(grads[name], total, rtol=1e-4, atol=1e-8)
