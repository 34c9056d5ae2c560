"""What `training.inspect` says of MSFP files and timestep-aware LoRAs, the report's routes, evaluation with both."""

from __future__ import annotations

import pytest
import torch
from fpsattention.kernels.msfp.file import read_msfp
from fpsattention.kernels.timestep_lora import RouteTable, write_timestep_lora
from fpsattention.training.config_file import PACK
from fpsattention.training.inspection import describe
from fpsattention.training.journal import Journal
from fpsattention.training.watch.panels import Run, make_panels
from fpsattention.training.watch.report import write_report
from safetensors.torch import load_file

from . import msfp_parts


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return msfp_parts.write(tmp_path_factory.mktemp("msfp") / "small.safetensors")


def hub(path, base, layer="blocks.0.ffn.0", features=(128, 64)):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, *size, generator=generator) for size in ((4, features[0]), (features[1], 4)))
    write_timestep_lora(path, {layer: (first, second)}, RouteTable(((0.6, 1), (0.0, 0))), 0.5, base=base)
    return path


def test_a_file_of_each_kind_is_told(path, tmp_path):
    file = read_msfp(path)
    said = [" ".join(line).strip() for line in describe(path)]
    assert "kind Wan2.1 text-to-video in low-bit floating point (MSFP)" in said
    assert any(line.startswith("packed 14 linear layers, ") for line in said)
    assert "weights: 8 x e2m1 per channel, 2 x e2m1 per tensor, 2 x e2m3 per channel, 2 x ue2m2 per 32 columns" in said
    assert "inputs: 8 x e2m1 static, 2 x as they are, 2 x e2m1 dynamic, 2 x ue2m2 static" in said
    assert f"fingerprint {file.fingerprint}" in said
    text = "\n".join(" ".join(line) for line in describe(hub(tmp_path / "hub.safetensors", file.fingerprint)))
    assert "timestep-aware LoRA" in text and "1, each a hub of 2 LoRAs in F32" in text and "4, scale 0.5" in text
    assert "sigma 1.0000 .. 0.6000   LoRA 1" in text and f"the MSFP model {file.fingerprint}" in text


def test_bits_count_scales_and_zero_points(path):
    file = read_msfp(path)
    said = next(value for key, value in describe(path) if key == "packed")
    bits = numbers = 0
    for _, weight in file.packed():
        bits += 8 * weight.nbytes
        numbers += weight.shape[0] * weight.columns
    assert f"{bits / numbers:.2f} bits a weight" in said


def test_routes_are_drawn_over_the_run(tmp_path):
    records = [
        {"step": step, "loss": 1.0, "routes": [int(sigma > 40 - step) for sigma in range(64)]}
        for step in range(0, 40, 10)
    ]
    panel = next(p for p in make_panels(Run("run", records), None) if p.title.startswith("Routes"))
    # The last route has LoRA 0 up to the 11th of 64 noise levels.
    assert "17% of sigma to LoRA 0, 83% of sigma to LoRA 1" in panel.said
    journal = Journal(tmp_path, about={"name": "run"})
    for record in records:
        journal.add(record)
    journal.close()
    assert "Routes of the timestep-aware LoRA" in write_report(tmp_path).read_text(encoding="utf-8")
    assert not any(p.title.startswith("Routes") for p in make_panels(Run("run", [{"step": 0, "loss": 1.0}]), None))


def test_an_msfp_model_and_one_with_its_hub_are_evaluated(tmp_path):
    from fpsattention.training.evaluation.cli import main
    from fpsattention.training.model import load_model, original_state

    assets = PACK / "training" / "assets"
    full = assets / "wan2.1-tiny-t2v.safetensors"
    path = msfp_parts.write_state(tmp_path / "tiny.safetensors", original_state(load_model(full)))
    lora = hub(tmp_path / "hub.safetensors", read_msfp(path).fingerprint, features=(256, 512))
    out = tmp_path / "out"
    arguments = [
        "--model", f"msfp={path}", "--model", f"full={full}", "--lora", f"hub={lora}", "--size", "64x64x5",
        "--steps", "2", "--attention", "dense", "--cfg", "1", "--vae", str(assets / "wan2.1-tiny-vae.safetensors"),
        "--out", str(out),
    ]  # fmt: skip
    assert main(arguments) == 0
    latents = {file.parent.name: load_file(file)["latents"] for file in out.rglob("*.safetensors")}
    assert len(latents) == 3, latents.keys()
    one, *others = latents.values()
    assert all((other - one).norm() > 0 for other in others)
