"""Trainer and host agree on a timestep-aware LoRA: the live router in the one, its table in the other, on a model in
full precision and on MSFP models."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import load_file, save_file

if importlib.util.find_spec("diffusers") is None:
    pytest.skip("the trainer's requirements are not installed (no diffusers)", allow_module_level=True)

from dataclasses import replace
from pathlib import Path

from fpsattention.kernels.outlook import sampler_sigmas
from fpsattention.kernels.timestep_lora import read_timestep_lora, write_timestep_lora
from fpsattention.training.config import TaloraSection
from fpsattention.training.flow import Flow
from fpsattention.training.model import load_model
from fpsattention.training.quantized import load_quantized, quantized_layers
from fpsattention.training.router import fold
from fpsattention.training.sample import sample
from fpsattention.training.talora import add_talora, load_timestep_lora, talora_off, talora_state, whole_router

SECTION, SHIFT, SHAPE = TaloraSection(hub=3, rank=4, alpha=8.0), 5.0, (16, 3, 12, 16)
# By name: how the trainer reads the base, its hub, and how far two implementations may be apart after sampling. In
# float32 alone 1e-4, as in test_agreement; rounding inputs to 4 bits makes other codes of such differences, 0.03 was
# seen.
BASES = {
    "plain": (load_model, "plain", 1e-4),
    "full precision": (load_quantized, "msfp", 1e-4),
    "as trained": (load_quantized, "msfp", 0.06),
}


def _parts():
    path = Path(__file__).parent.parent / "training" / "msfp_parts.py"
    spec = importlib.util.spec_from_file_location("fps_msfp_parts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _base(folder: Path, name: str):
    read, file, _ = BASES[name]
    model = read(folder / f"{file}.safetensors")
    if name == "full precision":
        for layer in quantized_layers(model).values():
            layer.packed_layer = replace(layer.packed_layer, input=None)
    return model


def _latents(model, steps: int) -> torch.Tensor:
    text = torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(1))[0]
    return _raw(sample(model, shape=SHAPE, seeds=[7], text=text, steps=steps, shift=SHIFT)[0])


def _raw(latent: torch.Tensor) -> torch.Tensor:
    from diffusers import AutoencoderKLWan

    config = AutoencoderKLWan().config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return latent * std + mean


def _train(model) -> None:
    """Give the hub and its router something of their own to say."""
    add_talora(model, SECTION, Flow(3.0), 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("talora_B"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def both(inside, tiny, tmp_path_factory):
    """Latents of the trainer and of the host by base and steps, what the host said, and the folder of the files."""
    folder, ours = tmp_path_factory.mktemp("talora"), {}
    state = tiny.tiny_wan()
    save_file(state, folder / "plain.safetensors")
    _parts().write_state(folder / "msfp.safetensors", state)
    for name, (_, hub, _) in BASES.items():
        model = _base(folder, name)
        _train(model)
        path = folder / f"{hub}-hub.safetensors"
        base = getattr(getattr(model, "msfp", None), "fingerprint", "")
        write_timestep_lora(path, talora_state(model), fold(whole_router(model)), SECTION.scale, base=base)
        for steps in (4, 20):
            ours[f"{name} {steps}"] = _latents(model, steps)
        with talora_off(model):
            ours[f"{name} without"] = _latents(model, 4)
    said = inside("fps_timestep_lora_trainer", FPS_FOLDER=str(folder))["sample"]
    return ours, load_file(folder / "host.safetensors"), said, folder


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", BASES)
def test_trainer_and_host_sample_the_same_latents(both, name, steps):
    ours, host, _, _ = both
    assert apart(host[f"{name} {steps}"], ours[f"{name} {steps}"]) < BASES[name][2]


@pytest.mark.parametrize("name", BASES)
def test_the_hub_matters(both, name):
    for side in both[:2]:
        assert apart(side[f"{name} 4"], side[f"{name} without"]) > 2 * BASES[name][2]


@pytest.mark.parametrize("name", BASES)
def test_the_host_ran_what_the_router_says(both, name):
    _, _, said, folder = both
    table = read_timestep_lora(folder / f"{BASES[name][1]}-hub.safetensors").table
    expected = [[table.at(sigma) for sigma in sampler_sigmas(steps, SHIFT)[:-1]] for steps in (4, 20)]
    assert said[name]["loras"] == expected and len(set(expected[1])) == SECTION.hub
    assert said[name]["notes"] == [[], []] and said[name]["traces"] == []
    assert ("trained on this quantized model" in said[name]["text"]) == (name != "plain")


def test_an_exported_hub_is_the_live_one(both):
    """The trainer's own reading of the file, beside which the host's is one more."""
    ours, _, _, folder = both
    model = _base(folder, "as trained")
    load_timestep_lora(model, folder / "msfp-hub.safetensors")
    assert apart(_latents(model, 4), ours["as trained 4"]) < 1e-6
