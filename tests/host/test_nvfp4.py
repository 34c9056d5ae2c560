"""``python -m training.quantize --form nvfp4``: a file that the stock loader takes as its own 4-bit form."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import load_file, save_file

if importlib.util.find_spec("diffusers") is None:
    pytest.skip("the trainer's requirements are not installed (no diffusers)", allow_module_level=True)
if importlib.util.find_spec("comfy_kitchen") is None:
    pytest.skip("the tests' requirements are not installed (no comfy-kitchen)", allow_module_level=True)

from fpsattention.training.export_file import export
from fpsattention.training.lora import linear_layers
from fpsattention.training.model import load_model, random_model
from fpsattention.training.names import WanShape
from fpsattention.training.quantize.cli import main
from fpsattention.training.quantize.nvfp4 import nvfp4_layout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small Wan in full precision and in NVFP4, and inputs for both."""
    folder = tmp_path_factory.mktemp("nvfp4")
    model = random_model(WanShape.of_kind("t2v", 256, 512, 2), 3)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    export(model, folder / "whole.safetensors", dtype="bf16")
    out = str(folder / "nvfp4.safetensors")
    assert main(["--model", str(folder / "whole.safetensors"), "--out", out, "--form", "nvfp4"]) == 0
    generator = torch.Generator().manual_seed(5)
    inputs = {
        "x": torch.randn(1, 16, 3, 8, 12, generator=generator),
        "t": torch.tensor([613.5]),
        "context": torch.randn(1, 16, 4096, generator=generator),
    }
    save_file(inputs, folder / "inputs.safetensors")
    return folder, inputs


@torch.no_grad()
def velocity(model, inputs) -> torch.Tensor:
    return model(*inputs.values(), return_dict=False)[0]


def test_the_stock_loader_takes_it_and_computes_with_its_values(inside, files):
    folder, inputs = files
    seen = inside("fps_nvfp4", FPS_FOLDER=str(folder))["velocity"]
    assert seen["class"] == "WAN21_T2V" and "NVFP4" in seen["layout"]
    found = load_file(folder / "nvfp4.out")["velocity"]
    model = load_model(folder / "whole.safetensors")
    whole, layout = velocity(model, inputs), nvfp4_layout()
    for name, (_, layer) in linear_layers(model).items():
        if name.startswith("blocks."):
            weight = layer.weight.data.bfloat16()
            layer.weight.data = layout.dequantize(*layout.quantize(weight)).float()
    rounded = velocity(model, inputs)

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / b.norm())

    # The host computes in bf16, whose 2^-9 adds up over two blocks; the rounding of the weights is far above that.
    assert error(found, rounded) < 0.02 < 0.05 < error(found, whole) < 0.5
