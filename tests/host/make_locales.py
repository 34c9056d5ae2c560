"""Writes ``locales/en/nodeDefs.json`` from what the running host says of the nodes.

Run it as ``COMFYUI_PATH=... python tests/host/make_locales.py`` from the pack's folder, with the pack on the path.

The other languages are written by hand; a test holds their keys equal to these.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from fpsattention.training.comfy_host import ComfyHost, find_checkout

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = ROOT / "locales" / "en" / "nodeDefs.json"


def node_definitions(object_info: dict[str, Any]) -> dict[str, Any]:
    """Return the pack's part of ``nodeDefs.json``: names and texts of every node, input and output."""
    definitions = {}
    for node_id, info in sorted(object_info.items()):
        if not node_id.startswith("FPSAttention"):
            continue
        inputs = {}
        for section in ("required", "optional"):
            for name, (_, options) in info["input"].get(section, {}).items():
                inputs[name] = {"name": options.get("display_name") or name, "tooltip": options.get("tooltip", "")}
        outputs = {
            str(i): {"name": name, "tooltip": tooltip or ""}
            for i, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"]))
        }
        definitions[node_id] = {"display_name": info["display_name"], "description": info["description"]}
        if inputs:
            definitions[node_id]["inputs"] = inputs
        if outputs:
            definitions[node_id]["outputs"] = outputs
    return definitions


def as_text(definitions: dict[str, Any]) -> str:
    return json.dumps(definitions, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    checkout = find_checkout(ROOT)
    if checkout is None:
        sys.exit("set COMFYUI_PATH to a ComfyUI checkout")
    with tempfile.TemporaryDirectory() as base, ComfyHost(checkout, Path(base), ROOT) as host:
        text = as_text(node_definitions(host.get("/object_info")))
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    print(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
