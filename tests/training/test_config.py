"""Configurations: shipped ones load, mistakes are one sentence with key, value and fix."""

from __future__ import annotations

import math

import pytest
from fpsattention.training.config import ConfigError
from fpsattention.training.config_file import CONFIGS, as_override, check_config, load_config, to_toml, with_changes


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_configurations_load_and_survive_being_written(path, tmp_path):
    config = load_config(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(to_toml(config), encoding="utf-8")
    assert load_config(copy) == config


def test_embedded_default_is_the_tiny_one():
    assert load_config() == load_config(CONFIGS / "tiny.toml")
    assert not load_config().attention.resolved().schedule.is_dense


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"optim__lrr": 3}, r"unknown key optim.lrr \(did you mean lr\?\); known here: name, lr, betas"),
        ({"trainer": {}}, r"unknown key trainer; known here: seed, device"),
        ({"optim__lr": "fast"}, "optim.lr is 'fast': input should be a valid number"),
        ({"optim__steps": True}, "optim.steps is True: should be a whole number without a point"),
        ({"optim__lr": -1.0}, "optim.lr is -1.0: input should be greater than 0"),
        ({"optim__betas": [0.9]}, "optim.betas"),
        ({"optim__betas": [0.9, 1.0]}, r"betas are \[0.9, 1.0\], both must be at least 0 and below 1"),
        ({"optim__warmup": 6}, "warmup is 6 of 6 steps; make it shorter than steps"),
        ({"model__dim": 100}, "dim is 100, it must be a multiple of the head dimension 128"),
        ({"model__path": "a.safetensors"}, "path and init = 'random' exclude each other"),
        ({"model": {"init": "random", "dim": 128}}, "ffn_dim is missing; a random model needs dim, ffn_dim and layers"),
        ({"model": {"init": "file"}}, "path is missing; name the Wan file"),
        ({"model": {"path": "a", "dim": 128}}, "dim is read from the file; remove it"),
        ({"attention__schedule": "fst"}, r"there is no preset 'fst' \(did you mean fast\?\); presets: mild"),
        ({"attention__schedule": "0.9 fp8 x9 all 2 2\n0 dense"}, "schedule: line 1, column 9"),
        ({"attention__tile": [4, 4, 4]}, "tile 4 x 4 x 4 has 64 tokens but slots is 16; raise slots"),
        ({"attention__backend": "flash"}, "backend is 'flash', it must be one of auto, triton-fp8"),
        ({"data__frames": 10}, "frames is 10, but Wan takes 4k"),
        ({"data__videoz": "x"}, r"unknown key data.videoz \(did you mean videos\?\)"),
        ({"device": "gpu"}, "device is 'gpu': should be auto, cpu, cuda, or one card such as cuda:1"),
        ({"optim": 3}, r"optim is 3: should be a section, \[optim\] in the file"),
        ({"validation__sigmas": 0.5}, r"validation.sigmas is 0.5: should be a list, \[a, b, ...\]"),
        ({"data__scale_range": [1.0, 2.0, 3.0]}, r"data.scale_range is \[1.0, 2.0, 3.0\]: should be a list of 2"),
        ({"data__scale_range": [1.0]}, "data.scale_range has too few values; write the one at place 2 too"),
        ({"data__flip": "no"}, "data.flip is 'no': should be true or false"),
        ({"data__videos": ""}, "data.videos: '' names no file or folder; write its path"),
        ({"output__dir": "a\0b"}, r"output.dir: 'a\\x00b' names no file or folder"),
        ({"seed": 2**64}, "seed is 18446744073709551616: input should be less than"),
        ({"preview": {"seeds": [-1]}}, "preview.seeds.0 is -1: input should be greater than or equal to 0"),
        ({"optim__steps": 10**400}, r"optim.steps is 1000.*\.\.\. \(401 characters\)"),
        ({"data__frames": 100001}, "data.frames is 100001: input should be less than or equal to 8193"),
        ({"flow__shift": 0.0}, "flow.shift is 0.0"),
        ({"validation__sigmas": []}, "validation.sigmas"),
        ({"output__name": "a/b"}, "output.name is 'a/b'"),
        ({"ema": {"decay": 1.0}}, "ema.decay is 1.0"),
    ],
)
def test_mistakes_are_one_sentence(make_config, change, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        make_config(**change)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("test.toml: ")


def test_missing_key_is_named(table):
    del table["optim"]["steps"]
    with pytest.raises(ConfigError, match=r"key optim.steps is missing; add it"):
        check_config(table, "x.toml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"no such configuration file; shipped: .*tiny.toml"):
        load_config(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[optim\nlr = 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(bad)
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        load_config(bad)
    bad.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(bad)
    with pytest.raises(ConfigError, match="is a folder; name the TOML file in it"):
        load_config(tmp_path)


def test_a_file_of_windows_editors_is_read(tmp_path):
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (CONFIGS / "tiny.toml").read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(path) == load_config(CONFIGS / "tiny.toml")


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (["optim.lr=x"], "--set optim.lr=x: optim.lr is 'x'"),
        (["optim.lr=x", "optim.lr=y"], "--set optim.lr=y: optim.lr is 'y'"),
        (["seed=1", "optim.warmup=500"], "TINY with --set optim.warmup=500: optim: warmup is 500 of 120 steps"),
        (["optim.stepz=1"], "--set optim.stepz=1: unknown key optim.stepz"),
        (["output.dir=${FPS_NONE}"], "--set output.dir=${FPS_NONE}: ${FPS_NONE} is not set"),
        (["data.buckets=[[9,64]"], "--set data.buckets=[[9,64]: its value is not TOML"),
        (["a=" + "[" * 5000], "--set a=["),
    ],
)
def test_a_mistake_on_the_command_line_is_said_of_it(overrides, start):
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert str(caught.value).startswith(start.replace("TINY", str(CONFIGS / "tiny.toml")))


def test_an_override_stands_in_for_a_variable_that_is_not_set(monkeypatch, tmp_path):
    monkeypatch.delenv("FPS_NONE", raising=False)
    path = tmp_path / "run.toml"
    text = (CONFIGS / "tiny.toml").read_text(encoding="utf-8")
    path.write_text(text.replace("${CLIP:-", "${FPS_NONE}${CLIP:-"), encoding="utf-8")
    assert load_config(path, ["data.videos=mine"]).data.videos == "mine"


def test_overrides(tmp_path):
    config = load_config(None, ["optim.lr=2e-4", "attention.schedule=fast", 'output.name="run-1"', "flow.shift=4.0"])
    assert config.optim.lr == 2e-4 and config.attention.schedule == "fast" and config.output.name == "run-1"
    for override, words in (
        ("optim.lr", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("seed.x=1", "seed is a value, not a section"),
        ("optim.lrate=1", "unknown key optim.lrate"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(None, [override])


@pytest.mark.parametrize("value", ['C:\\new "clips"\\a = b.mp4', "/tmp/ä # '.mp4", "1", "true"])
def test_an_override_is_quoted(value):
    assert load_config(None, [as_override("data.videos", value)]).data.videos == value


def test_variables_in_paths(make_config, monkeypatch):
    monkeypatch.setenv("FPS_TEST_FOLDER", "/videos")
    assert make_config(data__videos="${FPS_TEST_FOLDER}/a").data.videos == "/videos/a"
    assert make_config(data__videos="${FPS_TEST_NONE:-b}").data.videos == "b"
    with pytest.raises(ConfigError, match=r"\$\{FPS_TEST_NONE\} is not set; export FPS_TEST_NONE="):
        make_config(data__videos="${FPS_TEST_NONE}/a")


def test_the_home_folder_may_be_written_short(make_config, monkeypatch):
    monkeypatch.setenv("HOME", "/far/she")
    config = make_config(output__dir="~/out", vae__path="~/vae.safetensors", data__text_encoder="zeros")
    assert (config.output.dir, config.vae.path) == ("/far/she/out", "/far/she/vae.safetensors")
    assert config.data.text_encoder == "zeros" and make_config(output__dir="a~b").output.dir == "a~b"


def test_changes_are_checked_again(make_config):
    config = make_config()
    dense = with_changes(config, attention__schedule="dense", optim__lr=1e-4, ema={"decay": 0.5})
    assert dense.attention.resolved().schedule.is_dense and dense.optim.lr == 1e-4 and dense.ema.decay == 0.5
    assert with_changes(dense, ema=None) == with_changes(config, attention__schedule="dense", optim__lr=1e-4)
    with pytest.raises(ConfigError, match=r"unknown key optim.rate"):
        with_changes(config, optim__rate=1)


def test_learning_rate_curve(make_config):
    optim = make_config(optim__steps=110, optim__warmup=10, optim__lr=1.0, optim__final=0.1).optim
    rates = [optim.rate(step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) == rates[10]
    assert rates[60] == pytest.approx(0.55) and rates[109] == pytest.approx(0.1, abs=1e-3)
    assert all(math.isfinite(rate) for rate in rates)
    assert make_config(optim__decay="constant").optim.rate(5) == make_config().optim.lr
