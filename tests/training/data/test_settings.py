"""The data section refuses what Wan cannot take, and says what to write instead."""

from __future__ import annotations

import pytest
from fpsattention.training.data.settings import DataConfig
from pydantic import ValidationError

A, B = {"name": "a", "videos": "a"}, {"name": "b", "file": "b.jsonl", "weight": 2.0}


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
        ({"videos": None}, "videos is missing; name a folder of clips, or write one"),
        ({"sets": [A]}, "videos and sets exclude each other"),
        ({"videos": None, "sets": [A, B, {**A, "videos": "c"}]}, "two sets have the name 'a'"),
        ({"videos": None, "sets": [{"name": "a"}]}, "set 'a' has neither videos nor file"),
        ({"videos": None, "sets": [{**A, "file": "l"}]}, "set 'a' has both videos and file"),
        ({"videos": None, "sets": [{**A, "weight": 0.0}]}, "greater than 0"),
        ({"videos": None, "sets": [A, {**B, "weight": 1e-9}]}, "set 'b' has weight 1e-09, less than one sample in 1,0"),
        ({"videos": None, "sets": [{**A, "kind": "audio"}]}, "'videos', 'images' or 'both'"),
        ({"videos": None, "sets": [{**A, "name": "a/b"}]}, "match pattern"),
        ({"buckets": [[29, 128, 192], [30, 128, 192]]}, r"buckets\[1\] frames is 30, but Wan takes 4k"),
        ({"buckets": [[29, 100, 192]]}, r"buckets\[0\] height is 100, but it must be a multiple of 16; use 96 or 112"),
        ({"buckets": [[29, 128, 192], [29, 128, 192]]}, r"buckets has \[29, 128, 192\] twice"),
        ({"buckets": [[29, 128]]}, "Field required"),
        ({"buckets": [[29, 128, 192]], "bucket_tokens": 9}, "exclude each other"),
        ({"max_upscale": 0.5}, "greater than or equal to 1"),
        ({"workers": 0}, "greater than 0"),
    ],
)
def test_refused(change, says):
    with pytest.raises(ValidationError, match=says):
        DataConfig(**{"videos": "clips", **change})


def test_sets_survive_toml_and_their_mistakes_are_named(make_config):
    from fpsattention.training.config import ConfigError
    from fpsattention.training.config_file import check_config, to_toml, tomllib, with_changes

    config = make_config(data={"sets": [A, B], "buckets": [[9, 64, 64], [5, 64, 64]]})
    assert check_config(tomllib.loads(to_toml(config)), "again") == config
    assert [one.weight for one in with_changes(config, seed=3).data.sets] == [1.0, 2.0]
    with pytest.raises(ConfigError, match=r"unknown key data\.sets\.0\.wieght \(did you mean weight\?\)"):
        make_config(data={"sets": [{**A, "wieght": 1.0}]})
