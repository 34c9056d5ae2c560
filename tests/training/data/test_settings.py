"""The data section refuses what Wan cannot take, and says what to write instead."""

from __future__ import annotations

import pytest
from fpsattention.training.data.settings import DataConfig
from pydantic import ValidationError


def test_defaults_and_lists_from_toml():
    config = DataConfig(videos="clips", scale_range=[1.0, 2.0])
    assert (config.fps, config.frames, config.height, config.width) == (16.0, 29, 128, 192)
    assert config.scale_range == (1.0, 2.0) and config.captions == "error"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frames": 30}, "use 29 or 33"),
        ({"frames": 2}, "use 1 or 5"),
        ({"height": 130}, "use 128 or 144"),
        ({"width": 8}, "multiple of 16; use 16"),
        ({"scale_range": [0.5, 2.0]}, "1 <= low <= high"),
        ({"scale_range": [2.0, 1.0]}, "1 <= low <= high"),
        ({"fps": 0.0}, "greater than 0"),
        ({"holdout": 1.0}, "less than 1"),
        ({"captions": "ignore"}, "'error', 'skip' or 'empty'"),
        ({"videoz": 1}, "Extra inputs"),
        ({"frames": "29"}, "valid integer"),
        ({"fps": float("nan")}, "finite"),
    ],
)
def test_refused(change, says):
    with pytest.raises(ValidationError, match=says):
        DataConfig(**{"videos": "clips", **change})
