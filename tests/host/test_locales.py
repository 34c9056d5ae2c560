"""Every text that a person sees on a node, in English as the schemas say it, and in Chinese."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LOCALES = HERE.parent.parent / "locales"
# Names that stay as they are in every language: types, and words of the schedule's text.
SAME = re.compile(r"MODEL|IMAGE|LATENT|CFG|cfg|PSNR|psnr|FPSAttention|FPSAttention \(Wan\)")


def read(language: str, file: str) -> dict:
    return json.loads((LOCALES / language / file).read_text(encoding="utf-8"))


def leaves(tree: dict, path: str = "") -> dict[str, str]:
    """Every text by its path, keys joined by slashes."""
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{path}{key}/") if isinstance(value, dict) else {path + key: value}
    return found


@pytest.fixture(scope="module")
def definitions(server) -> dict:
    spec = importlib.util.spec_from_file_location("make_locales", HERE / "make_locales.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.node_definitions(server.get("/object_info"))


def test_english_is_what_the_schemas_say(definitions):
    assert read("en", "nodeDefs.json") == definitions, "run tests/host/make_locales.py"


def test_every_input_and_output_is_explained(definitions):
    short = [path for path, text in leaves(definitions).items() if path.endswith("tooltip") and len(text) < 15]
    assert short == []
    assert all(len(node["description"]) > 40 for node in definitions.values())


@pytest.mark.parametrize("file", ["nodeDefs.json", "main.json"])
def test_chinese_has_the_same_keys_and_its_own_words(file):
    english, chinese = leaves(read("en", file)), leaves(read("zh", file))
    assert sorted(chinese) == sorted(english)
    assert [path for path, text in chinese.items() if not text.strip()] == []
    assert [path for path in english if chinese[path] == english[path] and not SAME.fullmatch(english[path])] == []
    long = [path for path in chinese if path.endswith(("tooltip", "description"))]
    assert [path for path in long if not re.search(r"[\u4e00-\u9fff]", chinese[path])] == []


def test_chinese_keeps_names_and_numbers():
    """What a translation must not change: numbers, file names, words that the user has to type, node names."""
    english, chinese = leaves(read("en", "nodeDefs.json")), leaves(read("zh", "nodeDefs.json"))
    kept = re.compile(
        r"\d+(?:\.\d+)?|\bx[1248]\b|\bfp8\b|\bbf16\b|triton-\w+|models/\w+|\bmild\b|\bfast\b|\bfew-step\b"
    )
    wrong = {
        path: sorted(missing)
        for path, text in english.items()
        if (missing := {word for word in kept.findall(text) if word not in chinese[path]})
    }
    assert wrong == {}


def test_the_host_hands_them_out(server):
    served = server.get("/i18n")
    for language in ("en", "zh"):
        assert served[language]["nodeDefs"] == read(language, "nodeDefs.json")
        assert served[language]["nodeCategories"] == read(language, "main.json")["nodeCategories"]
