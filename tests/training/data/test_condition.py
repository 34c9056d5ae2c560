"""What image-to-video samples carry: mask, condition latents of one video, features of the known frames."""

from __future__ import annotations

import pytest
import torch
from fpsattention.training.data.cache import build_cache
from fpsattention.training.data.condition import (
    ImageEncoder,
    condition_mask,
    condition_video,
    image_tokens,
    known_frames,
)
from fpsattention.training.data.errors import DataError
from fpsattention.training.data.sampling import draw_cut, level_sizes, part_range, take
from fpsattention.training.data.settings import DataConfig
from fpsattention.training.data.video import read_clip
from fpsattention.training.files import file_sha256
from fpsattention.training.names import ModelError
from fpsattention.training.prepare import check_model
from fpsattention.training.vae import encode, load_vae, vae_hash
from pydantic import ValidationError
from safetensors.torch import load_file, save_file


def small_clip_vision(folder, **changes):
    """Write a CLIP vision model of ViT-H's width and tokens with two layers; return its folder."""
    from fpsattention.training.torchvision_guard import hide_broken_torchvision

    hide_broken_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    shape = {"hidden_size": 1280, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 16}
    CLIPVisionModel(
        CLIPVisionConfig(**{**shape, "image_size": 224, "patch_size": 14, "hidden_act": "gelu", **changes})
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def config(good_clip, tmp_path):
    def make(**changes):
        shape = {"frames": 9, "height": 32, "width": 48, "fps": 25.0, "samples_per_clip": 2, "val_samples_per_clip": 1}
        common = {"videos": str(good_clip), "captions": "empty", "cache": str(tmp_path / "cache"), "holdout": 0.3}
        return DataConfig(**{**shape, **common, "condition": "first", **changes})

    return make


@pytest.fixture
def build(vae_file):
    def run(config):
        calls = []

        def load():
            calls.append(1)
            return load_vae(vae_file)

        return build_cache(config, load, vae_hash(vae_file), progress=False), len(calls)

    return run


def test_the_mask_marks_known_pixel_frames():
    first, both = condition_mask("first", (3, 4, 6)), condition_mask("first-last", (3, 4, 6))
    assert first.shape == (4, 3, 4, 6) and first[:, 0].eq(1).all() and not first[:, 1:].any()
    assert both[:, 0].eq(1).all() and both[3, 2].eq(1).all() and both.sum() == first.sum() + 4 * 6
    # Pixel frame by pixel frame: the first stands four times, the others once.
    assert both.transpose(0, 1).reshape(12, 4, 6)[:, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("kind", "known"), [("first", [0]), ("first-last", [0, 8])])
def test_only_known_frames_are_shown(kind, known):
    video = torch.rand(3, 9, 4, 4) + 0.1
    shown = condition_video(kind, video)
    assert [t for t in range(9) if shown[:, t].any()] == known
    assert torch.equal(shown[:, known], video[:, known])
    assert torch.equal(known_frames(kind, video), video[:, known].transpose(0, 1))


@pytest.mark.parametrize(("kind", "tokens"), [("first", 257), ("first-last", 514)])
def test_samples_carry_condition_and_feature(config, build, vae_file, good_clip, tmp_path, kind, tokens):
    folder = small_clip_vision(tmp_path / "clip vision")
    dataset, loads = build(config(condition=kind, image_encoder=str(folder), flip=False))
    assert loads == 1 and image_tokens(kind) == tokens
    sample = dataset.train[1]
    assert sample["condition"].shape == (20, 3, 4, 6) and sample["condition"].dtype == torch.float32
    assert torch.equal(sample["condition"][:4], condition_mask(kind, (3, 4, 6)))
    assert sample["image"].shape == (tokens, 1280) and sample["image"].any()
    assert sample["text"].shape == (1, 4096) and not sample["text"].any()
    # The same cut, made here.
    chosen, bucket = config(condition=kind, flip=False), (9, 32, 48)
    sizes = level_sizes(chosen, bucket, (48, 64))
    starts = part_range(chosen, 40, "train")
    cut = draw_cut(chosen, bucket, file_sha256(good_clip), "train", 1, starts, sizes)
    video = take(bucket, read_clip(good_clip, fps=25, sizes=sizes), cut)
    want = encode(load_vae(vae_file), torch.stack([video, condition_video(kind, video)]))
    assert (torch.stack([sample["latent"], sample["condition"][4:]]) - want).abs().max() < 2e-3
    feature = ImageEncoder(str(folder))(known_frames(kind, video))
    assert (sample["image"] - feature).abs().max() < 1e-2
    again, loads = build(config(condition=kind, image_encoder=str(folder), flip=False))
    assert loads == 0 and torch.equal(again.train[1]["image"], sample["image"])


def test_text_to_video_latents_are_used_again(config, build):
    plain, _ = build(config(condition="none"))
    calls = {"first": 1, "none": 0}
    for kind, loads in calls.items():
        dataset, loaded = build(config(condition=kind))
        assert loaded == loads
        assert torch.equal(dataset.train[0]["latent"], plain.train[0]["latent"])
    assert "condition" not in plain.train[0] and "image" not in plain.train[0]
    zeros = build(config())[0].train[0]["image"]
    assert zeros.shape == (257, 1280) and not zeros.any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none", "no such folder; set data.image_encoder"),
        (lambda folder: folder, "does not load"),
        (lambda folder: small_clip_vision(folder / "b", image_size=28), "gives 5 tokens of width 1280, Wan takes"),
    ],
)
def test_an_encoder_that_does_not_fit(config, build, tmp_path, make, says):
    with pytest.raises(DataError, match=says):
        build(config(image_encoder=str(make(tmp_path))))


def test_an_encoder_whose_weights_have_other_names(tmp_path):
    folder = small_clip_vision(tmp_path / "c")
    ImageEncoder(str(folder))
    weights = load_file(folder / "model.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"does not load \((\d+) of its \1 weights are not in the files, '"):
        ImageEncoder(str(folder))


def test_the_encoder_takes_the_whole_picture(tmp_path):
    encoder = ImageEncoder(str(small_clip_vision(tmp_path / "c")))
    wide = torch.rand(1, 3, 32, 64) * 2 - 1
    changed = wide.clone()
    changed[..., :8] = -1  # would fall outside of a square cut from the middle
    assert not torch.allclose(encoder(wide), encoder(changed))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sets": [{"name": "p", "videos": "p", "kind": "images"}], "videos": None}, "set 'p' takes images"),
        ({"frames": 1}, "has one frame, but condition is 'first'"),
        ({"buckets": [[9, 32, 32], [1, 32, 32]]}, r"bucket \[1, 32, 32\] has one frame"),
        ({"text_length": 64}, "text_length is 64, but image-to-video models take 512"),
        ({"condition": "none", "image_encoder": "x"}, "image_encoder is given but condition is 'none'"),
        ({"condition": "last"}, "'none', 'first' or 'first-last'"),
    ],
)
def test_settings_that_do_not_go_together(config, change, says):
    with pytest.raises(ValidationError, match=says):
        config(**change)


def test_an_image_in_a_list_is_left_out(config, build, good_clip, tmp_path):
    import json

    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "p.png")
    lines = [{"path": str(good_clip)}, {"path": "p.png"}]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset, _ = build(config(videos=None, sets=[{"name": "l", "file": str(tmp_path / "l.jsonl")}], max_bad=0.5))
    assert dataset.bad == 1 and len(dataset.train) == 2
    assert "an image, but condition is 'first'" in (tmp_path / "cache" / "bad.jsonl").read_text()


@pytest.mark.parametrize(
    ("kind", "condition", "says"),
    [
        ("t2v", "none", None),
        ("i2v", "first", None),
        ("i2v", "first-last", None),
        ("flf", "first-last", None),
        ("i2v", "none", r"image-to-video \(36 channels.*data\.condition is 'none', which gives text-to-video \(16"),
        ("t2v", "first", r"text-to-video \(16 channels\), but data\.condition is 'first', which gives image-to-video"),
        ("flf", "first", r"first-last-frame .* but data\.condition is 'first'"),
    ],
)
def test_a_model_of_another_kind_is_refused(make_config, kind, condition, says):
    config = make_config(model__kind=kind, model__text_dim=4096, data__condition=condition)
    if says is None:
        check_model(config)
        return
    with pytest.raises(ModelError, match=says) as caught:
        check_model(config)
    assert "\n" not in str(caught.value) and "set data.condition to" in str(caught.value)
