"""One version: the pack's, its package's, what the trainer writes into checkpoints, and what workflows ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _in(name: str, pattern: str) -> str:
    return re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)[1]


VERSION = _in("__init__.py", r'^__version__ = "(.+)"$')


def test_package_and_trainer_have_the_packs_version():
    from fpsattention.training.export_file import TRAINER

    assert _in("pyproject.toml", r'^version = "(.+)"$') == VERSION
    assert f"fpsattention {VERSION}" == TRAINER


def _ours(node: object) -> list[str]:
    """Return the version of each of our nodes anywhere in a workflow, of either form."""
    if isinstance(node, dict):
        own = [node["ver"]] if node.get("cnr_id") == "fpsattention" else []
        return own + [version for value in node.values() for version in _ours(value)]
    return [version for value in node for version in _ours(value)] if isinstance(node, list) else []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "workflows").rglob("*.json")), ids=lambda path: path.parent.name + path.stem
)
def test_workflows_ask_for_the_packs_version(path):
    assert set(_ours(json.loads(path.read_text(encoding="utf-8")))) == {VERSION}
