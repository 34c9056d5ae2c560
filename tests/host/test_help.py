"""Help pages: one per node and language, every input named, every picture there and served by the host."""

from __future__ import annotations

import itertools
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "nodes" / "web" / "docs"
NODES = sorted(page.stem for page in DOCS.glob("*.md"))
PAGES = [Path(f"{node}.md") for node in NODES] + [Path(node) / "zh.md" for node in NODES]
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


def text_of(page: Path) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def served(server, path: str) -> bytes:
    """What the host answers for a file below the pack's web folder."""
    (pack,) = [p.name for p in server.packs if p.name != "testpack"]
    with urllib.request.urlopen(f"{server.url}/extensions/{pack}/{path}", timeout=10) as answer:
        return answer.read()


@pytest.fixture(scope="module")
def info(server) -> dict:
    return {name: node for name, node in server.get("/object_info").items() if name.startswith("FPSAttention")}


def test_every_node_has_its_pages(info):
    assert sorted(info) == NODES
    for page in PAGES:
        assert (DOCS / page).is_file(), f"{page} is missing"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_names_every_input_and_is_served(server, info, page):
    text = text_of(page)
    node = page.stem if page.parent == Path() else page.parent.name
    assert text.startswith("# ") and len(text) > 600
    for section in ("required", "optional"):
        for name in info[node]["input"].get(section, {}):
            assert re.search(rf"\b{name}\b", text), f"{page} does not tell what {name} is"
    assert served(server, f"docs/{page.as_posix()}").decode() == text


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_names_every_output(info, page):
    """A row each in the table of outputs, or a line where there is but one, in the node's order."""
    node = page.stem if page.parent == Path() else page.parent.name
    assert outputs_told(text_of(page)) == info[node]["output_name"]


def outputs_told(text: str) -> list[str]:
    """The first column of the table whose heading is output, and what lines beginning with that word name."""
    lines = text.splitlines()
    told = [found[1] for line in lines if (found := re.match(r"\*\*(?:Output|输出)\*\*[ :：]*(\w+)", line, re.ASCII))]
    tables = [i for i, line in enumerate(lines) if line.startswith(("| output |", "| 输出 |"))]
    for start in tables:
        rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
        told += [re.match(r"\| (\w+)", row, re.ASCII)[1] for row in rows]
    return told


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_pictures_are_there_and_described(server, page):
    """The page takes every picture from the docs folder, whatever the language."""
    for description, target in PICTURE.findall(text_of(page)):
        assert len(description) > 8 and not target.startswith(("http", "/", "."))
        assert served(server, f"docs/{target}") == (DOCS / target).read_bytes()


def test_pictures_are_used_and_small():
    used = {target for page in PAGES for _, target in PICTURE.findall(text_of(page))}
    there = {path.relative_to(DOCS).as_posix() for path in (DOCS / "images").iterdir()}
    assert used == there
    assert all((DOCS / name).stat().st_size < 150_000 for name in there)
    assert sum((DOCS / name).stat().st_size for name in there) < 500_000


@pytest.mark.parametrize("node", NODES)
def test_languages_have_the_same_parts(node):
    """The same tables, pictures and examples in both."""
    english, chinese = text_of(Path(f"{node}.md")), text_of(Path(node) / "zh.md")
    assert [t for _, t in PICTURE.findall(english)] == [t for _, t in PICTURE.findall(chinese)]
    for mark in ("## ", "|", "```", "- "):
        counts = [sum(line.startswith(mark) for line in text.splitlines()) for text in (english, chinese)]
        assert counts[0] == counts[1], f"{node}: lines that begin with {mark!r}"


def test_no_page_is_invented(server):
    with pytest.raises(urllib.error.HTTPError):
        served(server, "docs/FPSAttentionNothing.md")
