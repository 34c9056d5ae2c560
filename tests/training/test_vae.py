"""The VAE: names, files, one pass against diffusers' own loop, normalized latents, and the shipped file's claim."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from fpsattention.kernels.checkpoint import read_header
from fpsattention.training.torchvision_guard import hide_broken_torchvision
from fpsattention.training.vae import VaeError, decode, encode, load_vae, save_vae, vae_hash
from fpsattention.training.vae_names import name_map, original_name
from fpsattention.training.vae_pass import AutoencoderKLWan, decode_whole, encode_whole
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SHIPPED = Path(__file__).parents[2] / "training" / "assets" / "wan2.1-tiny-vae.safetensors"


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8).eval().requires_grad_(False)
    for name, p in vae.named_parameters():
        if name.endswith("gamma"):
            p.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            p.normal_(std=0.1)
    return vae


@pytest.fixture(scope="module")
def file(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_vae(vae, path, {"a": "b"})
    return path


@pytest.mark.parametrize("dim", [8, 96])
def test_names_agree_with_diffusers_own_converter(dim):
    hide_broken_torchvision()
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.device("meta"):
        names = list(AutoencoderKLWan(base_dim=dim).state_dict())
    mapped = name_map(names)
    assert len(mapped) == len(names)
    probe = {original: torch.tensor(float(i)) for i, original in enumerate(mapped)}
    converted = convert_wan_vae_to_diffusers(dict(probe))
    assert {new: list(mapped)[int(value)] for new, value in converted.items()} == {n: original_name(n) for n in names}


def test_round_trip_is_bit_equal(vae, file):
    back = load_vae(file)
    assert back.config.base_dim == 8 and not back.training
    state = vae.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in back.state_dict().items())
    assert "decoder.middle.0.residual.0.gamma" in load_file(file)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "a": "b"}


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 24), (5, 16, 16), (13, 24, 16)])
def test_one_pass_equals_the_chunked_loop(vae, frames, height, width):
    video = torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    chunked = vae._encode(video)
    assert (encode_whole(vae, video) - chunked).abs().max() <= 2e-5 * chunked.abs().max()
    latents = chunked[:, :16]
    want = vae.decode(latents, return_dict=False)[0]
    assert (decode_whole(vae, latents).clamp(-1, 1) - want).abs().max() <= 2e-5


def test_encode_normalizes_the_mode(vae):
    video = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = encode(vae, video)
    assert latents.shape == (1, 16, 3, 4, 6) and latents.dtype == torch.float32
    mode = vae.encode(video).latent_dist.mode()
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
    assert torch.allclose(latents, (mode - mean) / std, atol=1e-4)
    result = decode(vae, latents)
    assert result.shape == video.shape and result.abs().max() <= 1
    assert torch.allclose(result, vae.decode(mode, return_dict=False)[0], atol=1e-4)


def test_large_clips_keep_the_loop(vae, monkeypatch):
    import fpsattention.training.vae as module

    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    small = encode(vae, video)
    monkeypatch.setattr(module, "_WHOLE_PASS", 0)
    assert torch.allclose(encode(vae, video), small, atol=1e-4)
    assert torch.allclose(decode(vae, small), module.decode(vae, small), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 1, 5, 16, 16), (3, 5, 16, 16)])
def test_shapes_that_wan_cannot_take(vae, shape):
    with pytest.raises(ValueError, match=r"4k\+1"):
        encode(vae, torch.zeros(shape))


def test_latents_of_another_width(vae):
    with pytest.raises(ValueError, match="latents must be"):
        decode(vae, torch.zeros(1, 4, 1, 2, 2))


def test_a_diffusers_folder(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    for folder in (tmp_path, tmp_path / "vae"):
        back = load_vae(folder)
        assert torch.equal(back.quant_conv.weight, vae.quant_conv.weight)


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "another model", "too few", "too many", "shape", "z"])
def test_files_that_are_no_wan_vae(file, tmp_path, kind):
    path = tmp_path / "bad.safetensors"
    tensors = load_file(file)
    says = {
        "missing": "no such VAE",
        "text": "not a readable safetensors",
        "truncated": "not a readable safetensors",
        "another model": "not a Wan VAE",
        "too few": r"it misses decoder\.conv1\.weight",
        "too many": "it has the unknown extra",
        "shape": r"wrong shape for encoder\.head\.2\.bias",
        "z": "a VAE of another kind",
    }
    if kind == "text":
        path.write_text("hello " * 100)
    elif kind == "truncated":
        path.write_bytes(file.read_bytes()[:-1000])
    elif kind == "another model":
        save_file({"blocks.0.weight": torch.zeros(2)}, path)
    elif kind == "too few":
        save_file({name: value for name, value in tensors.items() if name != "decoder.conv1.weight"}, path)
    elif kind == "too many":
        save_file({**tensors, "extra": torch.zeros(2)}, path)
    elif kind == "shape":
        save_file({**tensors, "encoder.head.2.bias": torch.zeros(7)}, path)
    elif kind == "z":
        save_file({**tensors, "conv1.weight": torch.zeros(96, 96, 1, 1, 1)}, path)
    with pytest.raises(VaeError, match=says[kind]) as caught:
        load_vae(path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_folders_that_are_no_wan_vae(tmp_path):
    with pytest.raises(VaeError, match="not a diffusers VAE folder"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(VaeError, match="names AutoencoderKL, not AutoencoderKLWan"):
        load_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan", "base_dim": 8}))
    with pytest.raises(VaeError, match="does not load"):
        load_vae(tmp_path)


def test_hash_follows_the_content(file, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert vae_hash(copy) == vae_hash(file)
    copy.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert vae_hash(copy) != vae_hash(file)


@pytest.mark.skipif(not SHIPPED.is_file(), reason="the tiny VAE is not in this checkout")
class TestShipped:
    """The file that the pack ships."""

    def test_size_and_credit(self):
        assert SHIPPED.stat().st_size <= 4_000_000
        with safe_open(SHIPPED, "pt") as file:
            metadata = file.metadata()
        assert read_header(SHIPPED) is None
        assert "Blender Foundation, CC BY 3.0" in metadata["tiny_vae.clip"]
        assert float(metadata["tiny_vae.psnr"]) >= 24

    @pytest.mark.slow
    def test_held_out_psnr_is_as_stated(self):
        clip_path = os.environ.get("CLIP")
        if not clip_path or not Path(clip_path).is_file():
            pytest.skip("no clip: set CLIP to bigbuckbunny.mp4")
        from fpsattention.training.data.video import cover_size, read_clip
        from fpsattention.training.tiny_vae_fit import (
            HEIGHT,
            SCALES,
            WIDTH,
            FitOptions,
            held_out_psnr,
            held_out_samples,
        )

        clip = read_clip(clip_path, sizes=lambda source: [cover_size(source, HEIGHT, WIDTH, s) for s in SCALES])
        with safe_open(SHIPPED, "pt") as file:
            stated = float(file.metadata()["tiny_vae.psnr"])
        samples = held_out_samples(clip, FitOptions().holdout)[0]
        assert abs(held_out_psnr(load_vae(SHIPPED), samples) - stated) < 0.05 and stated >= 24
