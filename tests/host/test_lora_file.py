"""The trainer's LoRA file in the host: every key is used, and the host's model becomes the trainer's."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module", params=["t2v", "i2v"])
def both(request, inside, tiny, tmp_path_factory):
    """The trainer's outputs and the host's, without the file, with it and at half strength, and what the host said."""
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("the trainer's requirements are not installed (no diffusers)")
    from fpsattention.training.config import LoraSection
    from fpsattention.training.lora import LoraLinear, add_lora, lora_off, lora_state
    from fpsattention.training.model import load_model

    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    tiny.write_tiny_wan(folder / "model.safetensors", kind)
    targets = [f"{a}.{part}" for a in ("self_attn", "cross_attn") for part in "qkvo"] + ["ffn.0", "ffn.2"]
    targets += ["cross_attn.k_img", "cross_attn.v_img"] if kind == "i2v" else []
    model = load_model(folder / "model.safetensors").requires_grad_(False)
    add_lora(model, LoraSection(rank=4, alpha=6.0, targets=tuple(targets)), 0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_B.data.copy_(0.1 * torch.randn(module.lora_B.shape, generator=generator))
    x = torch.randn(1, 36 if kind == "i2v" else 16, 3, 8, 12, generator=generator)
    text = torch.randn(1, 512, 4096, generator=generator)
    t = torch.tensor([700.0])
    image = {"encoder_hidden_states_image": torch.randn(1, 257, 1280, generator=generator)} if kind == "i2v" else {}
    ours = {}
    with torch.no_grad():
        for name, share in (("with", 1.0), ("half", 0.5)):
            for module in model.modules():
                if isinstance(module, LoraLinear):
                    module.lora_scale = share * 6.0 / 4
            ours[name] = model(x, t, text, return_dict=False, **image)[0]
        with lora_off(model):
            ours["without"] = model(x, t, text, return_dict=False, **image)[0]
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_scale = 6.0 / 4
    save_file(lora_state(model), folder / "lora.safetensors")
    save_file({"x": x, "t": t, "text": text, **image}, folder / "inputs.safetensors")
    said = inside("fps_lora", FPS_FOLDER=str(folder))["lora"]
    return ours, load_file(folder / "host.safetensors"), said, len(targets)


def test_every_key_is_used(both):
    _, _, said, targets = both
    assert len(said["patches"]) == 3 * targets
    assert said["patches"][0] == "diffusion_model.blocks.0.cross_attn.k.weight"
    assert not [line for line in said["warnings"] if "lora" in line.lower()]


@pytest.mark.parametrize("name", ["without", "with", "half"])
def test_the_hosts_model_becomes_the_trainers(both, name):
    ours, host, _, _ = both
    # Two implementations in float32; the host merges the product into the weights, the trainer adds it to the output.
    assert (ours[name] - host[name]).norm() / ours[name].norm() < 1e-4


def test_the_file_matters(both):
    for side in both[:2]:
        full, half = ((side[name] - side["without"]).norm() / side["without"].norm() for name in ("with", "half"))
        assert full > half > 0.02
