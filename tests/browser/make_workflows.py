"""Writes the shipped workflows, UI form and API twin, and the subgraph, from one description each (``graphs/``).

Run it as ``python tests/browser/make_workflows.py``.

A test holds the committed files equal to what this writes, and another opens them in a real page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from graphs import blueprint, parts
from graphs.forms import api_form, ui_form
from graphs.templates import WORKFLOWS, graph
from graphs.types import TYPES, NodeType

__all__ = ["TYPES", "WORKFLOWS", "NodeType", "api_form", "blueprint", "contents", "graph", "parts", "ui_form"]

ROOT = Path(__file__).resolve().parent.parent.parent


def contents() -> dict[str, str]:
    """Return every file's text by its path below the pack's folder."""
    files = {f"subgraphs/{blueprint.NAME}.json": json.dumps(blueprint.blueprint(), indent=2) + "\n"}
    for name in WORKFLOWS:
        files[f"workflows/{name}.json"] = json.dumps(ui_form(graph(name), name), indent=2) + "\n"
        files[f"workflows/api/{name}.json"] = json.dumps(api_form(graph(name)), indent=2) + "\n"
    return files


def main() -> int:
    for name, text in contents().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
