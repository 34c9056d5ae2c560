"""Text embeddings: cached by caption and encoder, padded with zeros, never computed twice."""

from __future__ import annotations

import pytest
import torch
from fpsattention.training.data import text as text_module
from fpsattention.training.data.errors import DataError
from fpsattention.training.data.settings import DataConfig
from fpsattention.training.data.text import read_text, text_files
from safetensors.torch import load_file, save_file


class FakeEncoder:
    """Three tokens that hold the caption's length."""

    calls = 0

    def __init__(self, folder, length, device):
        pass

    def __call__(self, caption):
        type(self).calls += 1
        return torch.full((3, 4096), float(len(caption)), dtype=torch.bfloat16)


@pytest.fixture
def config(tmp_path, monkeypatch):
    folder = tmp_path / "umt5"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    FakeEncoder.calls = 0
    monkeypatch.setattr(text_module, "_Umt5", FakeEncoder)
    return DataConfig(videos="x", text_encoder=str(folder), text_length=8, cache=str(tmp_path / "cache"))


def test_each_caption_once(config, tmp_path):
    files = text_files(config, ["dog", "house", "dog"], tmp_path)
    assert FakeEncoder.calls == 2 and set(files) == {"dog", "house"}
    assert text_files(config, ["house", "dog"], tmp_path) == files
    assert FakeEncoder.calls == 2
    text = read_text(files["house"], 8)
    assert text.shape == (8, 4096) and text.dtype == torch.float32
    assert (text[:3] == 5).all() and not text[3:].any()


def test_another_encoder_or_length_is_another_embedding(config, tmp_path):
    first = text_files(config, ["dog"], tmp_path)["dog"]
    longer = text_files(config.model_copy(update={"text_length": 16}), ["dog"], tmp_path)["dog"]
    (tmp_path / "umt5" / "model.safetensors").write_bytes(b"x" * 10)
    other = text_files(config, ["dog"], tmp_path)["dog"]
    assert len({first, longer, other}) == 3


def test_zeros_need_no_encoder(tmp_path):
    assert text_files(DataConfig(videos="x"), ["dog"], tmp_path) == {}
    text = read_text(None, 512)
    assert text.shape == (1, 4096) and not text.any()


def test_a_missing_encoder(tmp_path):
    with pytest.raises(DataError, match="no such folder; set data"):
        text_files(DataConfig(videos="x", text_encoder=str(tmp_path / "none")), ["dog"], tmp_path)


def test_a_folder_that_is_no_encoder(tmp_path):
    with pytest.raises(DataError, match="UMT5 does not load"):
        text_files(DataConfig(videos="x", text_encoder=str(tmp_path)), ["dog"], tmp_path)


def test_a_real_small_umt5(tmp_path):
    """The real classes of transformers, at Wan's width but one layer, with a word-level tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    from fpsattention.training.torchvision_guard import hide_broken_torchvision

    hide_broken_torchvision()
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "light": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    shape = UMT5Config(vocab_size=8, d_model=4096, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(shape).to(torch.bfloat16).save_pretrained(tmp_path)
    config = DataConfig(videos="x", text_encoder=str(tmp_path), text_length=4)
    files = text_files(config, ["a light", "a light a light a light"], tmp_path / "cache")
    short, long = (read_text(files[c], 4) for c in ("a light", "a light a light a light"))
    assert short[:2].any() and not short[2:].any() and long[3].any()
    # Under other names the weights would be random numbers.
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"UMT5 does not load \(\d+ of its \d+ weights are not in the files, '"):
        text_files(config, ["a"], tmp_path / "cache")
