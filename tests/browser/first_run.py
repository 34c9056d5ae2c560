"""Does what a new user does, and times it: clone into custom_nodes, start, open a template, queue, see the report.

Run it as ``COMFYUI_PATH=... python tests/browser/first_run.py FOLDER`` with the pack on the path; screenshots and the
server's log go to FOLDER. Wan's files are stood in for by tiny ones, the text encoder by a node of the test pack.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fpsattention.training.comfy_host import ComfyHost, find_checkout
from loading import load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TESTPACK = ROOT / "tests" / "host" / "testpack"
NAME = "wan2.1_t2v_stock_with_fpsattention"
FOLDER = "ComfyUI-FPSAttention"
STARTS = 5


def reduced() -> dict:
    """The template with the test pack's conditioning in place of the text encoder, small and short."""
    generator, stand_ins = load(HERE / "make_workflows.py"), load(ROOT / "tests" / "host" / "stand_ins.py")
    generator.TYPES["FPSTestConditioning"] = generator.NodeType(
        "Test Conditioning", [], ["noise_seed", "tokens", "path"], [("CONDITIONING", "CONDITIONING")]
    )
    graph = generator.graph(NAME)
    graph.nodes = [node for node in graph.nodes if node.type != "CLIPLoader"]
    for node in graph.nodes:
        if node.type == "CLIPTextEncode":
            node.type, node.links = "FPSTestConditioning", {}
            node.widgets = {"noise_seed": 1, "tokens": 512, "path": ""}
        node.widgets |= stand_ins.REDUCED.get(node.type, {}) | ({"steps": 8} if node.type == "KSampler" else {})
    return generator.ui_form(graph, NAME)


def started(checkout: Path, clone: Path | None, folder: Path) -> float:
    """Seconds until a server with the clone, or without any pack, answers."""
    with tempfile.TemporaryDirectory(dir=folder) as base:
        if clone:
            (Path(base) / "custom_nodes").mkdir()
            shutil.copytree(clone, Path(base) / "custom_nodes" / FOLDER)
        begin = time.perf_counter()
        with ComfyHost(checkout, Path(base)):
            return time.perf_counter() - begin


def main() -> int:
    out = Path(sys.argv[1]).absolute()
    out.mkdir(parents=True, exist_ok=True)
    checkout = find_checkout(ROOT)
    base = Path(tempfile.mkdtemp(dir=out))
    clone = base / "custom_nodes" / FOLDER
    times: dict[str, float] = {}

    begin = time.perf_counter()
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    times["clone"] = time.perf_counter() - begin
    with_pack, without = [], []
    for _ in range(STARTS):
        without.append(started(checkout, None, out))
        with_pack.append(started(checkout, clone, out))
    times["start without"], times["start with"] = statistics.median(without), statistics.median(with_pack)

    stand_ins = load(ROOT / "tests" / "host" / "stand_ins.py")
    tiny = load(ROOT / "tests" / "host" / "inside" / "fps_tiny.py")
    frontend = os.environ.get("COMFYUI_FRONTEND")
    arguments = ["--front-end-root", frontend] if frontend else []
    with ComfyHost(checkout, base, extra_packs=[TESTPACK], arguments=arguments) as host:
        job = {"category": FOLDER, "template": NAME, "reduced": reduced(), "pictures": str(out)}
        (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
        api = json.loads((ROOT / "workflows" / "api" / f"{NAME}.json").read_text(encoding="utf-8"))
        command = ["node", str(HERE / "first_run.mjs"), host.url, shutil.which("chromium") or os.environ["CHROMIUM"]]
        page = subprocess.Popen(
            [*command, str(base / "profile"), str(out / "job.json")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        for line in page.stdout:
            if line.startswith("MODELS"):  # the page has named what is missing: now the files come
                stand_ins.offer(base, api, tiny, {})
                page.stdin.write("there\n")
                page.stdin.flush()
            elif line.startswith("TIME "):
                _, seconds, what = line.rstrip().split(" ", 2)
                times[what] = float(seconds)
            else:
                print(line.rstrip())
        page.wait()
        (out / "server.log").write_text(host.log(), encoding="utf-8")
    print(json.dumps({what: round(seconds, 2) for what, seconds in times.items()}, indent=1))
    return page.returncode


if __name__ == "__main__":
    sys.exit(main())
