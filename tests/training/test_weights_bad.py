"""What cannot be used is refused in one sentence that says what it is and what to give instead."""

from __future__ import annotations

import json

import pytest
import torch
from fpsattention.training.names import PREFIX, ModelError, to_diffusers
from fpsattention.training.weights import open_weights
from safetensors.torch import save_file

from .wan_files import INDEX, SMALL, random_state, write_form, write_shards

SHARD = "diffusion_pytorch_model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(SMALL["t2v"])


def refused(path, message: str) -> None:
    """Opening the path raises one sentence that names the path's last part and matches."""
    with pytest.raises(ModelError, match=message) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def wan(change: dict) -> dict[str, torch.Tensor]:
    """Return a small Wan with tensors replaced by zeros of a shape, or removed (None)."""
    tensors = random_state(SMALL["t2v"])
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = torch.zeros(shape)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_emb.proj.1.weight": (1280, 1280)}, "takes 16 and gives 16 latent channels; this release trains"),
        ({"img_emb.other": (4,)}, "lacks the tensor img_emb.proj.1.weight"),
        ({"vace_patch_embedding.weight": (4,)}, "is a VACE model"),
        ({"control_adapter.conv.weight": (4,)}, "is a camera-control model"),
        ({"ref_conv.weight": (4,)}, "reference-image"),
        (
            {"patch_embedding.weight": (128, 36, 1, 2, 2)},
            r"takes 36 .* without an image embedding \(Wan2\.2\)",
        ),
        ({"patch_embedding.weight": (128, 48, 1, 2, 2)}, "takes 48 and gives 16 latent channels"),
        ({"patch_embedding.weight": (128,)}, "too few dimensions"),
        ({"blocks.1.ffn.2.weight": None}, "lacks the tensor blocks.1.ffn.2.weight"),
        ({"blocks.7.ffn.2.weight": (2, 2)}, r"lacks the tensor blocks\.2\.modulation"),
        ({"blocks.1.self_attn.q.weight": (128, 64)}, r"has shape \(128, 64\), expected \(128, 128\)"),
        ({"blocks.0.self_attn.q.extra": (1,)}, "1 tensors that no Wan2.1 text-to-video"),
        ({"head.modulation": (1, 2, 96)}, "dim 96, which is not a multiple"),
        ({"head.modulation": None}, "is not a Wan transformer"),
    ],
)
def test_a_file_that_is_no_trainable_wan(tmp_path, change, message):
    save_file(wan(change), tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", message)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["decoder.conv1.weight", "decoder.upsamples.0.residual.0.gamma"], "is a Wan VAE; give it as vae.path"),
        (["decoder.up_blocks.0.resnets.0.conv1.weight"], "is a VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "is a text encoder"),
        (["token_embedding.weight", "blocks.0.attn.q.weight"], "is a text encoder"),
        (["vision_model.embeddings.class_embedding"], "is a CLIP vision encoder"),
        (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "is a LoRA"),
        (["double_blocks.0.img_attn.qkv.weight"], "is a transformer of another family"),
        (["something"], "is not a Wan transformer"),
    ],
)
def test_a_file_of_something_else(tmp_path, names, message):
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", message)


def test_mixed_names(tmp_path, state):
    path = tmp_path / "a.safetensors"
    half = {name: tensor.clone() for name, tensor in list(state.items())[:20]}
    save_file(state | {PREFIX + name: tensor for name, tensor in half.items()}, path)
    refused(path, f"mixes names with and without {PREFIX}")
    save_file(state | to_diffusers(half), path)
    refused(path, "mixes original and diffusers' names")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64])
def test_weights_of_a_wrong_type(tmp_path, state, dtype):
    save_file(state | {"blocks.0.ffn.0.weight": torch.zeros(64, 128, dtype=dtype)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", r"blocks\.0\.ffn\.0\.weight is \w+, weights must be F32, F16, BF16")


def test_shards_that_are_missing_truncated_or_not_as_the_index_says(tmp_path, state):
    folder = write_shards(tmp_path / "mit Lücke", state)
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(whole[:-100])
    refused(folder, "is truncated")
    (folder / SHARD).write_bytes(whole[:100])
    refused(folder, "is truncated")
    (folder / SHARD).unlink()
    refused(folder, f"lacks the shard {SHARD}, which {INDEX} names; download it")
    (folder / INDEX).unlink()
    refused(folder, f"lacks the shard {SHARD}; download it")
    (folder / SHARD).write_bytes(whole)
    (folder / INDEX).write_text("{}")
    refused(folder, "is not an index")
    (folder / INDEX).write_text('{"weight_map": {"head.modulation": "../../elsewhere.safetensors"}}')
    refused(folder, "is not an index")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, SHARD)}))
    refused(folder, "lacks the tensor .* which .*index.json says is in it")
    (folder / INDEX).unlink()
    save_file({"head.modulation": state["head.modulation"]}, folder / SHARD)
    refused(folder, "has the tensor head.modulation, which .* has already")


def test_folders_without_one_model(tmp_path, state):
    refused(tmp_path / "nowhere", "there is no file .*nowhere")
    refused(tmp_path, "holds no .safetensors file; give")
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"1")
    refused(tmp_path, r"holds no .safetensors file, only Wan2\.1_VAE\.pth")
    refused(tmp_path / "Wan2.1_VAE.pth", "is a .pth file, which is not read")
    for name in ("one", "two"):
        save_file(state, tmp_path / f"{name}.safetensors")
    refused(tmp_path, r"holds several models \(one.safetensors, two.safetensors\); give the path of the one")
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    refused(tmp_path, "holds several indices")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "config.json is of a AutoencoderKLWan"),
        ({"num_layers": 30}, "config.json says num_layers 30, the tensors say 2; the folder is incomplete"),
        ({"dim": 128, "num_heads": 12}, "config.json says num_heads 12"),
        ([], "is not a JSON table"),
    ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path, state, config, message):
    folder = write_form("original shards", tmp_path, state)
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, message)


def test_a_vae_folder_of_a_pipeline(tmp_path):
    folder = tmp_path / "vae"
    folder.mkdir()
    save_file({"decoder.up_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, folder / "a.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    refused(folder, "is a VAE")


def test_a_model_of_another_shape_is_not_filled(tmp_path, state):
    from fpsattention.training.model import build
    from fpsattention.training.names import WanShape
    from fpsattention.training.weights import load_into

    weights = open_weights(write_form("original", tmp_path, state))
    with pytest.raises(ModelError, match="does not fit this model, which differs in 27 tensors"):
        load_into(build(WanShape.of_kind("t2v", 128, 64, 1, 16)), weights)
    with pytest.raises(ModelError, match=r"is \(64, 128\), but \(32, 128\) in this model"):
        load_into(build(WanShape.of_kind("t2v", 128, 32, 2, 16)), weights)
