"""The pack's face imports without ComfyUI, triton and CUDA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"triton", "comfy", "comfy_api", "folder_paths", "diffusers", "transformers"}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocked())
import fpsattention.__init__
assert "torch" not in sys.modules
import fpsattention.nodes.patch, fpsattention.nodes.record, fpsattention.nodes.settings, fpsattention.nodes.layout
print("ok")
"""


def test_imports_without_the_host_and_triton():
    done = subprocess.run([sys.executable, "-c", _SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


def test_the_root_file_declares_the_entry():
    text = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert "comfy_entrypoint" in text and "NODE_CLASS_MAPPINGS" not in text
    assert 'WEB_DIRECTORY = "./nodes/web"' in text
    # Every script below the folder is loaded by the page: two that extend it, and the modules that they import.
    web = ROOT / "nodes" / "web"
    places = {path.relative_to(web).parts[0] for path in web.rglob("*.js")}
    assert places <= {"fps_schedule.js", "fps_output.js", "core", "editor"}
