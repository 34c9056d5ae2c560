"""Makes the pictures that show the page itself: thumbnails of the shipped workflows, and the editor on the help page.

Run it as ``COMFYUI_PATH=... python tests/browser/make_pictures.py`` with the pack on the path; it needs Chromium, node
and playwright-core (``PLAYWRIGHT_FOLDER``). Files that are missing are stood in for; make the help pages' other
pictures (``tests/host/make_help_pictures.py``) before these.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.presets import preset
from fpsattention.training.comfy_host import ComfyHost, find_checkout
from loading import load

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORKFLOWS = ROOT / "workflows"
EDITOR = ROOT / "nodes" / "web" / "docs" / "images" / "editor.png"
SIZE = (640, 360)

# Per workflow: title, words, and what stands large beside them: the editor as it opens there, or a node's picture.
TITLES = {
    "wan2.1_t2v_1.3b_fpsattention": ("Text to video 1.3B", "a checkpoint with its own\nsparse attention", "report"),
    "wan2.1_t2v_14b_fpsattention": ("Text to video 14B", "a checkpoint with its own\nsparse attention", "report"),
    "wan2.1_t2v_stock_with_fpsattention": ("Start here", "Wan2.1 with stock weights,\nsparse phase by phase", "editor"),
    "wan2.1_i2v_14b_with_fpsattention": ("Image to video", "Wan2.1 I2V 14B\nwith FPSAttention", "editor"),
    "wan2.1_vace_with_fpsattention": ("VACE", "a reference picture,\ncontrol blocks sparse too", "editor"),
    "wan2.1_t2v_14b_4_steps_with_fpsattention": ("Four steps", "distilled LoRA,\nonly the first step dense", "editor"),
    "wan2.1_compare_dense_and_fpsattention": ("Dense or sparse?", "same seed, two reports,\nside by side", "report"),
    "wan2.1_profile_schedule_sample": ("Profile", "measure your model,\nget a schedule, sample", "profile"),
    "wan2.1_search_head_patterns_sample": ("Head patterns", "a pattern for every head,\nfound on your model", "search"),
    "wan2.1_t2v_msfp_with_timestep_lora": ("4 bits", "packed weights, a LoRA\nfor every noise level", "report"),
}
SHOWN = {"report": (50, 95, 890, 430), "profile": (40, 85, 870, 560), "search": (10, 60, 890, 270)}


def screenshots(folder: Path) -> dict[str, Path]:
    """Open every workflow in a real page, large, and return the screenshots by name."""
    stand_ins = load(ROOT / "tests" / "host" / "stand_ins.py")
    tiny = load(ROOT / "tests" / "host" / "inside" / "fps_tiny.py")
    metadata = Header(preset("balanced")).to_metadata()
    checkout, chromium = find_checkout(ROOT), shutil.which("chromium") or os.environ["CHROMIUM"]
    with ComfyHost(checkout, folder / "host", ROOT, extra_packs=[ROOT / "tests" / "host" / "testpack"]) as host:
        jobs = []
        for name, (_, _, shown) in TITLES.items():
            api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
            stand_ins.offer(host.base, api, tiny, metadata)
            offer_encoders(host.base, api)
            jobs.append(job(name, name, folder))
            if shown == "editor":
                place = node_place(WORKFLOWS / f"{name}.json", "FPSAttentionSchedule")
                jobs.append(job(f"{name}-editor", name, folder) | {"fit": place})
        for key, value in {
            "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": True, "Comfy.VueNodes.AutoScaleLayout": False,
            "Comfy.Minimap.Visible": False, "Comfy.Workflow.ShowMissingModelsWarning": False,
        }.items():  # fmt: skip
            host.post(f"/settings/{key}", value)
        (folder / "jobs.json").write_text(json.dumps(jobs))
        subprocess.run(
            ["node", str(HERE / "page.mjs"), host.url, chromium, str(folder / "profile"), str(folder / "jobs.json")],
            check=True, capture_output=True, timeout=500,
        )  # fmt: skip
    return {job["name"]: Path(job["screenshot"]) for job in jobs}


def job(name: str, workflow: str, folder: Path) -> dict:
    path = WORKFLOWS / f"{workflow}.json"
    return {"name": name, "path": str(path), "screenshot": str(folder / f"{name}.png"), "fit": True}


def offer_encoders(base: Path, api: dict) -> None:
    folders = {"CLIPLoader": "text_encoders", "CLIPVisionLoader": "clip_vision"}
    for node in api.values():
        if node["class_type"] in folders:
            path = base / "models" / folders[node["class_type"]] / node["inputs"]["clip_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def node_place(workflow: Path, kind: str) -> dict[str, float]:
    """Scale and offset that put the node, with its title, at (120, 120) of the page in its own size."""
    (node,) = [n for n in json.loads(workflow.read_text(encoding="utf-8"))["nodes"] if n["type"] == kind]
    left, top = node["pos"]
    return {"scale": 1.1, "x": 120 / 1.1 - left, "y": 120 / 1.1 - (top - 30)}


def thumbnail(shot: Path, hero, title: str, words: str, target: Path) -> None:
    """Write title and words, beside them the picture ``hero``, below them the graph of the screenshot."""
    from PIL import Image, ImageDraw, ImageEnhance, ImageFont

    picture = Image.new("RGB", SIZE, "#16181d")
    draw = ImageDraw.Draw(picture)
    fonts = [ImageFont.truetype(f"DejaVuSans{kind}.ttf", size) for kind, size in (("-Bold", 27), ("", 17))]
    draw.rectangle((0, 0, 8, SIZE[1]), fill="#4fa3ff")
    draw.text((28, 24), title, "#ffffff", fonts[0])
    draw.multiline_text((28, 66), words, "#a9c9ee", fonts[1], spacing=5)
    with Image.open(shot) as whole:
        # Without the page's bars and its counter.
        graph = whole.convert("RGB").crop((60, 100, whole.width - 10, whole.height - 110))
    graph = ImageEnhance.Brightness(fitted(graph.crop(content(graph)), (SIZE[0] - 40, 150))).enhance(1.4)
    picture.paste(graph, (24 + (SIZE[0] - 40 - graph.width) // 2, SIZE[1] - graph.height - 12))
    hero = fitted(hero, (300, SIZE[1] - graph.height - 38))
    picture.paste(hero, (SIZE[0] - hero.width - 16, 14))
    picture.save(target, quality=84, optimize=True)


def fitted(picture, room: tuple[int, int]):
    """The picture as large as ``room`` allows, in its own proportions."""
    from PIL import Image

    scale = min(room[0] / picture.width, room[1] / picture.height)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


def content(picture) -> tuple[int, int, int, int]:
    """The box of everything that is not the page's background."""
    from PIL import Image, ImageChops

    background = Image.new("RGB", picture.size, picture.getpixel((2, picture.height // 2)))
    return ImageChops.difference(picture, background).convert("L").point(lambda v: 255 * (v > 24)).getbbox()


def main() -> int:
    from PIL import Image

    with tempfile.TemporaryDirectory() as base:
        shots = screenshots(Path(base))
        for name, (title, words, shown) in TITLES.items():
            if shown == "editor":
                with Image.open(shots[f"{name}-editor"]) as whole:
                    hero = whole.convert("RGB").crop((146, 375, 722, 740))
            else:
                with Image.open(EDITOR.with_name(f"{shown}.png")) as whole:
                    hero = whole.convert("RGB").crop(SHOWN[shown])
            thumbnail(shots[name], hero, title, words, WORKFLOWS / f"{name}.jpg")
            print(WORKFLOWS / f"{name}.jpg")
        with Image.open(shots["wan2.1_t2v_stock_with_fpsattention-editor"]) as whole:
            node = whole.convert("RGB").crop((108, 108, 120 + round(560 * 1.1) + 12, 120 + round(850 * 1.1) + 12))
            node.quantize(128).save(EDITOR, optimize=True)
        print(EDITOR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
