"""Folders that cannot be written are refused before any work is done for them."""

from __future__ import annotations

import pytest
from fpsattention.training.config import ConfigError
from fpsattention.training.config_file import as_override, load_config
from fpsattention.training.prepare import check_folders


@pytest.mark.parametrize("key", ["output.dir", "checkpoint.dir", "data.cache"])
def test_a_file_in_a_folders_place_is_told_at_once(key, tmp_path):
    file = tmp_path / "plain"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(ConfigError, match=rf"^{key} is .*plain is a file; name a folder"):
            check_folders(load_config(None, [as_override(key, folder.as_posix())]))


def test_folders_that_do_not_exist_yet_are_fine(tmp_path):
    keys = ("output.dir", "checkpoint.dir")
    check_folders(load_config(None, [as_override(key, (tmp_path / "a" / "b").as_posix()) for key in keys]))
    assert not (tmp_path / "a").exists()
