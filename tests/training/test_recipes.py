"""The shipped recipes: every value has its source, each dry-runs on a file's header, and the memory page is true."""

from __future__ import annotations

import json
import re
import struct

import pytest
from fpsattention.training import cli
from fpsattention.training.config_file import CONFIGS, load_config
from fpsattention.training.dry_run import largest_grid
from fpsattention.training.memory import GIB
from fpsattention.training.memory_advice import verdict
from fpsattention.training.memory_document import PAGE, REFUSED, ROWS, SHAPES, page

RECIPES = sorted(CONFIGS.glob("wan2.1-*.toml"))
# Values that say where things are, or that need no source.
PLACES = {
    "device",
    "path",
    "teacher_path",
    "videos",
    "text_encoder",
    "cache",
    "dir",
    "name",
    "tensorboard",
    "val_samples_per_clip",
}
# Explained by the comment above or the value before them.
WITH_OTHERS = {"width", "schedule", "decay", "targets", "stages", "fp8_after", "skip_last"}


def header_only(path, shape) -> None:
    """Write a file whose header names every tensor of a model and whose data are a hole."""
    header, end = {}, 0
    for name, size in shape.tensors().items():
        count = 2
        for number in size:
            count *= number
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def test_there_is_a_recipe_for_every_model_and_machine():
    assert {path.stem for path in RECIPES} == {
        "wan2.1-1.3b",
        "wan2.1-1.3b-24gb",
        "wan2.1-1.3b-msfp",
        "wan2.1-14b",
        "wan2.1-14b-lora",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_value_has_its_source(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r"^(\w+) = ", line)
        if found and found[1] not in PLACES | WITH_OTHERS:
            assert re.search(r"# \[(paper|choice)\]|# one caption|\[choice\]", line) or found[1] in ("dtype",), line


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_papers_values_are_the_papers(path):
    config = load_config(path)
    assert (config.optim.warmup, config.optim.weight_decay, config.optim.clip) == (200, 1e-4, 1.0)
    assert (config.flow.shift, config.flow.sampling, config.flow.text_dropout) == (5.0, "logit-normal", 0.1)
    assert (config.ema.decay, config.data.fps, config.data.frames, config.data.text_length) == (0.99, 16.0, 81, 512)
    if config.adapters is None:
        assert (config.optim.lr, config.optim.eps, config.loss.teacher) == (5e-6, 1e-15, 0.0)
    if config.model.path.endswith("14B_bf16.safetensors") and config.lora is None:
        assert config.parallel.sequence == 4 and config.fp8_linears is not None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_dry_runs_on_a_header(path, tmp_path, capsys):
    large = "14b" in path.stem
    model = tmp_path / "model.safetensors"
    header_only(model, SHAPES["14B" if large else "1.3B"])
    processes, memory = ("8", "80") if path.stem in ("wan2.1-14b", "wan2.1-1.3b") else ("1", "48" if large else "24")
    arguments = ["--dry-run", "--config", str(path), "--set", f"model.path={model}"]
    if load_config(path).loss.teacher_path is not None:
        arguments += ["--set", f"loss.teacher_path={model}"]
    assert cli.main([*arguments, "--world", processes, "--gpu-memory", memory]) == 0
    out = capsys.readouterr().out
    assert f"fits {memory} GB" in out and "does not fit" not in out
    assert ("14,288.49 M" if large else f"{SHAPES['1.3B'].parameters / 1e6:,.2f} M") in out


def test_the_memory_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m training.memory_plans"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_the_plans_on_the_page_fit(row):
    assert row.plan().total <= row.gigabytes * GIB


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.title)
def test_what_does_not_fit_is_told_with_a_way_out(row):
    config = row.config()
    said = verdict(config, row.shape, largest_grid(config), row.processes, row.gigabytes)
    assert said.startswith(f"does not fit {row.gigabytes:g} GB") and "the largest part is" in said
    assert "; set " in said
