"""Noise levels, the path and the reproducibility of what is drawn."""

from __future__ import annotations

import pytest
import torch
from fpsattention.training.flow import Flow, draw, noisy, sample_generator, shifted, timestep, velocity_loss


@pytest.mark.parametrize(
    ("u", "sigma"), [(0.1, 0.35714), (0.2, 0.55556), (0.5, 0.83333), (0.8, 0.95238), (0.9, 0.97826)]
)
def test_shift_five_matches_the_published_table(u, sigma):
    assert shifted(u, 5.0) == pytest.approx(sigma, abs=1e-5)
    assert float(timestep(torch.tensor(sigma))) == pytest.approx(1000 * sigma)


def test_path_ends_and_exact_velocity():
    x0, eps = torch.randn(2, 16, 1, 4, 4), torch.randn(2, 16, 1, 4, 4)
    assert torch.equal(noisy(x0, eps, torch.zeros(2)), x0)
    assert torch.equal(noisy(x0, eps, torch.ones(2)), eps)
    assert velocity_loss(eps - x0, x0, eps).abs().max() == 0
    # Following the true velocity from any sigma down to zero arrives at the data.
    x = noisy(x0, eps, torch.tensor([0.7, 0.2]))
    assert torch.allclose(x - torch.tensor([0.7, 0.2]).view(-1, 1, 1, 1, 1) * (eps - x0), x0, atol=1e-6)


def test_draws_depend_on_seed_epoch_and_sample_only(samples):
    flow = Flow(shift=3.0)
    first, again = (draw(samples[1], flow, 7, 2, 1) for _ in range(2))
    assert first.sigma == again.sigma and torch.equal(first.noise, again.noise)
    others = [draw(samples[1], flow, *key) for key in ((8, 2, 1), (7, 3, 1), (7, 2, 4))]
    assert all(other.sigma != first.sigma for other in others)
    assert len({sample_generator(s, e, i).initial_seed() for s in range(4) for e in range(4) for i in range(50)}) == 800


@pytest.mark.parametrize("sampling", ["uniform", "logit-normal"])
def test_quantiles_follow_the_draws(sampling):
    flow = Flow(shift=3.0, sampling=sampling)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([flow.draw_sigma(generator) for _ in range(4000)])
    assert drawn.min() > 0 and drawn.max() <= 1
    assert drawn.mean().item() == pytest.approx(sum(flow.quantiles(200)) / 200, abs=0.01)


def test_text_is_dropped_at_the_asked_rate(samples):
    sample = {**samples[0], "text": torch.ones(2, 16)}
    dropped = sum(not draw(sample, Flow(), 0, 0, i, text_dropout=0.25).text.any() for i in range(400))
    assert 70 < dropped < 130
