"""Which schedule a model gets, and what is said about it."""

from __future__ import annotations

import pytest
from fpsattention.kernels.checkpoint import Header, HeaderError
from fpsattention.kernels.presets import PRESETS, preset
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes.settings import KEY, Patched, Settings, choose_settings, file_header, nominal_work
from safetensors.torch import save_file

TRAINED = Schedule.parse("0.50 fp8 x2 all 20% 20%\n0.00 fp8 x1 all 40% 40%")


def test_stock_weights_get_mild_without_a_warning():
    settings = choose_settings(None, None, "auto")
    assert settings.schedule == preset("mild") and settings.notes == ()
    assert "the model file has none" in settings.source and settings.tiles == {}


def test_stronger_than_mild_is_said():
    settings = choose_settings(None, preset("fast"), "auto")
    (note,) = settings.notes
    assert "not trained for this sparsity" in note and "%" in note
    for harmless in ("mild", "dense"):
        assert choose_settings(None, preset(harmless), "auto").notes == ()


def test_the_files_schedule_is_the_default():
    header = Header(TRAINED, slots=48, tile=(3, 4, 4), smooth_k=False)
    settings = choose_settings(header, None, "reference")
    assert settings.schedule == TRAINED and settings.source == "the model file" and settings.notes == ()
    assert settings.tiles == {"slots": 48, "tile": (3, 4, 4), "smooth_k": False}
    assert settings.backend == "reference"


def test_an_override_is_named():
    header = Header(TRAINED)
    settings = choose_settings(header, preset("fast"), "auto")
    assert "in place of the model file's" in settings.source and len(settings.notes) == 1
    assert choose_settings(header, TRAINED, "auto").notes == ()


def test_presets_are_ordered():
    work = {name: nominal_work(preset(name)) for name in PRESETS}
    assert work["fast"] < work["balanced"] < work["mild"] < work["dense"] == 1.0
    assert work["mild"] >= 0.3


class Loaded:
    """A MODEL as the stock loader makes it."""

    def __init__(self, path=None, attachment=None):
        self.attachment = attachment
        if path is not None:
            self.cached_patcher_init = (None, (str(path), {}))

    def get_attachment(self, key):
        assert key == KEY
        return self.attachment


def test_header_of_a_stock_loaded_file(tmp_path):
    import torch

    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata=Header(TRAINED).to_metadata())
    assert file_header(Loaded(path)).schedule == TRAINED
    save_file({"x": torch.zeros(1)}, path)
    assert file_header(Loaded(path)) is None
    save_file({"x": torch.zeros(1)}, path, metadata={"fpsattention.version": "9"})
    with pytest.raises(HeaderError, match=r"model\.safetensors"):
        file_header(Loaded(path))


def test_header_where_nothing_can_be_told(tmp_path):
    assert file_header(Loaded()) is None
    assert file_header(Loaded(tmp_path / "gone.safetensors")) is None
    assert file_header(Loaded(tmp_path / "model.gguf")) is None


def test_header_of_a_patched_model():
    header = Header(TRAINED)
    patched = Patched(Settings(TRAINED, "x", header=header))
    assert file_header(Loaded(attachment=patched)) is header


def test_presets_cost_what_the_help_pages_say():
    """Tooltips and help pages call mild two thirds, balanced a fifth and fast an eighth of the attention work."""
    work = {name: nominal_work(preset(name)) for name in PRESETS}
    assert 0.55 < work["mild"] < 0.75
    assert 0.15 < work["balanced"] < 0.25
    assert 0.1 < work["fast"] < 0.15
