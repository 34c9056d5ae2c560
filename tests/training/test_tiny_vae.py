"""The tiny VAE's training: its teacher, its optimizer, the folded latents, and a run that is interrupted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fpsattention.kernels.checkpoint import CheckpointError, read_header
from fpsattention.training import tiny_vae_cli, tiny_vae_fit
from fpsattention.training.linear_codec import LinearCodec
from fpsattention.training.orthogonal import OrthogonalMomentum, orthogonalize
from fpsattention.training.tiny_vae_fold import fold_whitening
from fpsattention.training.vae import decode, encode
from fpsattention.training.vae_pass import AutoencoderKLWan
from safetensors.torch import load_file

from .data.conftest import write_clip


@pytest.fixture
def videos():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(4, 3, 9, 32, 48, generator=generator) * 2 - 1
    return [torch.nn.functional.avg_pool3d(video[None], (1, 5, 5), 1, (0, 2, 2)) * 3 for video in base]


def test_folding_whitens_the_latents_and_keeps_the_picture(videos):
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8).eval().requires_grad_(False)
    before = [decode(vae, encode(vae, video)) for video in videos]
    spread = fold_whitening(vae, videos)
    latents = torch.cat([encode(vae, video)[0].flatten(1) for video in videos], 1)
    assert latents.mean(1).abs().max() < 1e-2
    assert (torch.cov(latents) - torch.eye(16)).abs().max() < 2e-2
    assert (spread[:-1] >= spread[1:]).all()
    for video, want in zip(videos, before, strict=True):
        assert (decode(vae, encode(vae, video)) - want).abs().max() < 2e-3


def test_orthogonalize_flattens_the_singular_values():
    generator = torch.Generator().manual_seed(0)
    for shape in ((8, 216), (32, 32), (40, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=generator)))
        # A random square matrix has singular values near zero, which five rounds do not lift all the way.
        assert values.max() < 1.3 and values.median() > 0.6


def test_the_optimizer_learns_and_restores():
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(3, 8, 3)
    optimizer = OrthogonalMomentum([layer.weight], lr=0.05)
    x = torch.randn(2, 3, 5, 5, 5)
    target = torch.randn(2, 8, 3, 3, 3)

    def loss():
        return (layer(x) - target).square().mean()

    first = loss().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * first
    twin = OrthogonalMomentum([layer.weight], lr=0.1)
    twin.load_state_dict(optimizer.state_dict())
    assert twin.param_groups[0]["lr"] == 0.05
    assert torch.equal(twin.state[layer.weight]["momentum"], optimizer.state[layer.weight]["momentum"])


def test_linear_codec_has_unit_variance_and_wans_layout(videos):
    codec = LinearCodec([video[0] for video in videos], 8)
    latents = codec.encode(torch.cat(videos))
    assert latents.shape == (4, 8, 3, 4, 6)
    assert torch.allclose(torch.cov(latents.transpose(0, 1).flatten(1)), torch.eye(8), atol=2e-2)


def test_an_interrupted_fit_gives_the_same_file(tmp_path, monkeypatch):
    """Interrupted after two of four steps and resumed, the written weights are those of a straight run."""
    clip = write_clip(tmp_path / "clip.mp4", frames=50, height=64, width=96)
    monkeypatch.setattr(tiny_vae_fit, "FRAMES", 9)
    monkeypatch.setattr(tiny_vae_fit, "HEIGHT", 32)
    monkeypatch.setattr(tiny_vae_fit, "WIDTH", 48)
    monkeypatch.setattr(tiny_vae_fit, "SCALES", (1.0, 1.6))
    monkeypatch.setattr(tiny_vae_fit, "_CROPS", ((0.5, 1, 5, 16, 16), (0.5, 2, 1, 24, 16)))
    options = tiny_vae_fit.FitOptions(steps=4, warmup=1, log_every=2, taught=0.5)
    straight, resumed = tmp_path / "straight.safetensors", tmp_path / "resumed.safetensors"
    metadata = tiny_vae_fit.fit(clip, straight, options)
    assert read_header(straight) is None  # it has no attention to tell about
    assert metadata["tiny_vae.steps"] == "4" and not list(tmp_path.glob("*.resume"))

    real, calls = tiny_vae_fit._step, []

    def step(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(tiny_vae_fit, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        tiny_vae_fit.fit(clip, resumed, options)
    assert not resumed.exists()
    tiny_vae_fit.fit(clip, resumed, options)
    assert len(calls) == 5
    one, other = load_file(straight), load_file(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_clip_that_is_too_short_says_so(tmp_path):
    clip = write_clip(tmp_path / "short.mp4", frames=60, height=96, width=128)
    with pytest.raises(ValueError, match="use a longer clip or a larger holdout"):
        tiny_vae_fit.fit(clip, tmp_path / "x.safetensors", dataclasses.replace(tiny_vae_fit.FitOptions(), steps=1))


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise CheckpointError("out has 0 MiB free, vae.safetensors needs 17 MiB; free some space.")

    monkeypatch.setattr(tiny_vae_cli, "fit", fail)
    with pytest.raises(SystemExit) as caught:
        tiny_vae_cli.main(["--clip", "clip.mp4", "--out", str(tmp_path / "vae.safetensors")])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "out has 0 MiB free, vae.safetensors needs 17 MiB; free some space.\n"
