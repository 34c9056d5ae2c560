"""Writes the shipped workflows, UI form and API twin, from one description each.

Run it as ``python tests/browser/make_workflows.py``.

A test holds the committed files equal to what this writes, and another opens them in a real page.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent.parent / "workflows"
CORE_VERSION = "0.19.3"
PACK_VERSION = "0.1.0"

# Per node type: display name, linked inputs (name, type), widgets, outputs (name, type), all in the host's order.
TYPES: dict[str, tuple[str, list[tuple[str, str]], list[str], list[tuple[str, str]]]] = {
    "FPSAttentionLoadWan": (
        "Load FPSAttention Wan", [], ["model_name", "weight_dtype"],
        [("MODEL", "MODEL"), ("schedule", "FPS_SCHEDULE"), ("text", "STRING")],
    ),
    "FPSAttentionApply": (
        "FPSAttention (Wan)", [("model", "MODEL"), ("schedule", "FPS_SCHEDULE,STRING")], ["backend"],
        [("MODEL", "MODEL")],
    ),
    "FPSAttentionSchedule": (
        "FPSAttention Schedule", [], ["preset", "schedule"], [("schedule", "FPS_SCHEDULE"), ("text", "STRING")],
    ),
    "FPSAttentionReport": (
        "FPSAttention Report", [("latent", "LATENT"), ("model", "MODEL")], [],
        [("LATENT", "LATENT"), ("text", "STRING"), ("IMAGE", "IMAGE")],
    ),
    "UNETLoader": ("Load Diffusion Model", [], ["unet_name", "weight_dtype"], [("MODEL", "MODEL")]),
    "CLIPLoader": ("Load CLIP", [], ["clip_name", "type", "device"], [("CLIP", "CLIP")]),
    "VAELoader": ("Load VAE", [], ["vae_name"], [("VAE", "VAE")]),
    "CLIPTextEncode": ("CLIP Text Encode (Prompt)", [("clip", "CLIP")], ["text"], [("CONDITIONING", "CONDITIONING")]),
    "ModelSamplingSD3": ("ModelSamplingSD3", [("model", "MODEL")], ["shift"], [("MODEL", "MODEL")]),
    "EmptyHunyuanLatentVideo": (
        "Empty HunyuanVideo 1.0 Latent", [], ["width", "height", "length", "batch_size"], [("LATENT", "LATENT")],
    ),
    "KSampler": (
        "KSampler",
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
        ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"], [("LATENT", "LATENT")],
    ),
    "VAEDecode": ("VAE Decode", [("samples", "LATENT"), ("vae", "VAE")], [], [("IMAGE", "IMAGE")]),
    "CreateVideo": ("Create Video", [("images", "IMAGE"), ("audio", "AUDIO")], ["fps"], [("VIDEO", "VIDEO")]),
    "SaveVideo": ("Save Video", [("video", "VIDEO")], ["filename_prefix", "format", "codec"], []),
    "MarkdownNote": ("Markdown Note", [], ["text"], []),
}  # fmt: skip

REPOSITORY = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"

POSITIVE = (
    "A red fox trots through fresh snow at the edge of a pine forest, its breath visible in the cold air, low winter "
    "sun behind the trees, the camera follows at the fox's height."
)
NEGATIVE = "overexposed, static, blurry details, subtitles, worst quality, low quality, deformed limbs, still frame"

MILD = """# fps-schedule v1, unit sigma
# until   attention   granularity   window t h w
  0.92    dense
  0.00    fp8         x1            all 60% 60%
"""


@dataclass
class Node:
    """One node: where it stands, what its widgets hold, where its inputs come from (node id, output number)."""

    id: int
    type: str
    pos: tuple[int, int]
    size: tuple[int, int]
    widgets: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[int, int]] = field(default_factory=dict)
    title: str = ""
    models: list[dict[str, str]] = field(default_factory=list)
    color: tuple[str, str] | None = None


def model_entry(folder: str, name: str) -> dict[str, str]:
    return {"name": name, "url": f"{REPOSITORY}/{folder}/{name}", "directory": folder}


def owner(node: Node) -> dict[str, str]:
    """What the host's manager needs to name a missing pack."""
    if node.type.startswith("FPSAttention"):
        return {"cnr_id": "fpsattention", "ver": PACK_VERSION}
    return {"cnr_id": "comfy-core", "ver": CORE_VERSION}


def ui_form(nodes: list[Node], groups: list[tuple[str, tuple[int, int, int, int], str]]) -> dict[str, Any]:
    """Return the UI-format workflow."""
    links, rows = [], []
    by_id = {node.id: node for node in nodes}
    outgoing: dict[tuple[int, int], list[int]] = {}
    for node in nodes:
        for slot, (name, _) in enumerate(TYPES[node.type][1]):
            if name in node.links:
                source, output = node.links[name]
                kind = TYPES[by_id[source].type][3][output][1]
                links.append([len(links) + 1, source, output, node.id, slot, kind])
                outgoing.setdefault((source, output), []).append(len(links))
    into = {(target, slot): number for number, _, _, target, slot, _ in links}
    for order, node in enumerate(nodes):
        _, inputs, widgets, outputs = TYPES[node.type]
        properties: dict[str, Any] = {}
        if node.type != "MarkdownNote":
            properties = owner(node) | {"Node name for S&R": node.type}
        if node.models:
            properties["models"] = node.models
        values: list[Any] = []
        for name in widgets:
            values.append(node.widgets[name])
            if name in ("seed", "noise_seed"):
                values.append("randomize")
        row = {
            "id": node.id,
            "type": node.type,
            "pos": list(node.pos),
            "size": list(node.size),
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": [
                {"name": name, "type": kind, "link": into.get((node.id, slot))}
                for slot, (name, kind) in enumerate(inputs)
            ],
            "outputs": [
                {"name": name, "type": kind, "links": outgoing.get((node.id, slot))}
                for slot, (name, kind) in enumerate(outputs)
            ],
            "properties": properties,
            "widgets_values": values,
        }
        if node.title:
            row["title"] = node.title
        if node.color:
            row["color"], row["bgcolor"] = node.color
        rows.append(row)
    return {
        "id": "",
        "revision": 0,
        "last_node_id": max(by_id),
        "last_link_id": len(links),
        "nodes": rows,
        "links": links,
        "groups": [
            {"id": i, "title": title, "bounding": list(box), "color": color, "font_size": 24, "flags": {}}
            for i, (title, box, color) in enumerate(groups, 1)
        ],
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [60, 120]}},
        "version": 0.4,
    }


def api_form(nodes: list[Node]) -> dict[str, Any]:
    """Return the API-format twin: what the page sends to the server for the same graph."""
    api = {}
    for node in nodes:
        if node.type == "MarkdownNote":
            continue
        display, inputs, widgets, _ = TYPES[node.type]
        values: dict[str, Any] = {name: node.widgets[name] for name in widgets}
        values |= {name: [str(node.links[name][0]), node.links[name][1]] for name, _ in inputs if name in node.links}
        meta = {"title": node.title or display} | owner(node)
        api[str(node.id)] = {"inputs": values, "class_type": node.type, "_meta": meta}
    return api


GREEN, BLUE, VIOLET = ("#233", "#355"), ("#223", "#335"), ("#323", "#535")
GROUP = "#3f789e"


def text_to_video(
    *,
    patch: list[Node],
    model: tuple[int, int],
    note: str,
    width: int,
    height: int,
    shift: float,
    cfg: float,
    prefix: str,
) -> tuple[list[Node], list[tuple[str, tuple[int, int, int, int], str]]]:
    """Return the graph around ``patch``, whose output ``model`` is sampled: loaders, prompts, sampler, report, video.

    Columns from left to right; nodes of ``patch`` beyond the first stand in a column of their own.
    """
    own = 480 if len(patch) > 1 else 0
    prompt, sample, ran, video = 480 + own, 960 + own, 1360 + own, 2000 + own
    nodes = [
        Node(1, "MarkdownNote", (-440, 40), (380, 640), {"text": note}, title="Read me", color=VIOLET),
        *patch,
        Node(
            2, "CLIPLoader", (20, 280), (380, 110), {"clip_name": TEXT_ENCODER, "type": "wan", "device": "default"},
            models=[model_entry("text_encoders", TEXT_ENCODER)],
        ),
        Node(3, "VAELoader", (20, 440), (380, 60), {"vae_name": VAE}, models=[model_entry("vae", VAE)]),
        Node(
            4, "CLIPTextEncode", (prompt, 40), (420, 300), {"text": POSITIVE}, {"clip": (2, 0)},
            "Positive prompt", color=GREEN,
        ),
        Node(
            5, "CLIPTextEncode", (prompt, 400), (420, 280), {"text": NEGATIVE}, {"clip": (2, 0)},
            "Negative prompt", color=GREEN,
        ),
        Node(
            6, "EmptyHunyuanLatentVideo", (20, 560), (380, 120),
            {"width": width, "height": height, "length": 81, "batch_size": 1},
        ),
        Node(7, "ModelSamplingSD3", (sample, 40), (340, 60), {"shift": shift}, {"model": model}),
        Node(
            8, "KSampler", (sample, 150), (340, 270),
            {"seed": 42, "steps": 30, "cfg": cfg, "sampler_name": "uni_pc", "scheduler": "simple", "denoise": 1.0},
            {"model": (7, 0), "positive": (4, 0), "negative": (5, 0), "latent_image": (6, 0)},
        ),
        Node(9, "FPSAttentionReport", (ran, 40), (580, 640), {}, {"latent": (8, 0), "model": model}, color=BLUE),
        Node(10, "VAEDecode", (sample, 470), (340, 50), {}, {"samples": (9, 0), "vae": (3, 0)}),
        Node(11, "CreateVideo", (sample, 570), (340, 110), {"fps": 16.0}, {"images": (10, 0)}),
        Node(
            12, "SaveVideo", (video, 40), (580, 640),
            {"filename_prefix": prefix, "format": "auto", "codec": "auto"}, {"video": (11, 0)},
        ),
    ]  # fmt: skip
    columns = [("Models and size", 0, 420), ("Prompt", prompt - 20, 460), ("Sample", sample - 20, 380)]
    columns += [("What ran", ran - 20, 620), ("Video", video - 20, 620)]
    if own:
        columns.append(("Attention", 460, 460))
    return nodes, [(title, (left, -50, width, 760), GROUP) for title, left, width in columns]


TRAINED_NOTE = """## Wan2.1 {size} with its own attention

**Load FPSAttention Wan** reads a Wan file that was trained *with* sparse FP8 attention, and patches it with the
schedule in its header. Nothing else has to be set.

1. Put the file that the pack's trainer exported into `models/diffusion_models` and choose it in the first node.
   An ordinary Wan file works too: it then runs dense, and the report says so.
2. Text encoder: `models/text_encoders/{text_encoder}`
3. VAE: `models/vae/{vae}`

**FPSAttention Report** shows after sampling what every step ran, and every reason for staying dense.
"""

STOCK_NOTE = """## Stock Wan2.1 with FPSAttention

**FPSAttention (Wan)** makes the self-attention of an ordinary Wan model sparse and FP8.

The weights were not trained for that, so the schedule here is *mild*: dense while the layout of the picture forms,
then windows of 60 % in height and width over all frames. A stronger schedule is faster and changes the content; the
report says so.

- Model: `models/diffusion_models/{model}`
- Text encoder: `models/text_encoders/{text_encoder}`
- VAE: `models/vae/{vae}`

Set the schedule's preset to `dense` to compare with the same seed.
"""


def trained(size: str, file: str, **options: Any) -> tuple[list[Node], list[Any]]:
    load = Node(
        13, "FPSAttentionLoadWan", (20, 40), (380, 190), {"model_name": file, "weight_dtype": "default"}, color=BLUE
    )
    note = TRAINED_NOTE.format(size=size, text_encoder=TEXT_ENCODER, vae=VAE)
    return text_to_video(patch=[load], model=(13, 0), note=note, **options)


def stock(file: str, **options: Any) -> tuple[list[Node], list[Any]]:
    note = STOCK_NOTE.format(model=file, text_encoder=TEXT_ENCODER, vae=VAE)
    patch = [
        Node(
            13, "UNETLoader", (20, 40), (380, 90), {"unet_name": file, "weight_dtype": "default"},
            models=[model_entry("diffusion_models", file)],
        ),
        Node(14, "FPSAttentionSchedule", (480, 40), (420, 400), {"preset": "custom", "schedule": MILD}, color=BLUE),
        Node(
            15, "FPSAttentionApply", (480, 500), (420, 110), {"backend": "auto"},
            {"model": (13, 0), "schedule": (14, 0)}, color=BLUE,
        ),
    ]  # fmt: skip
    return text_to_video(patch=patch, model=(15, 0), note=note, **options)


WORKFLOWS = {
    "wan2.1_t2v_1.3b_fpsattention": lambda: trained(
        "T2V 1.3B", "wan2.1_t2v_1.3B_fpsattention.safetensors",
        width=832, height=480, shift=8.0, cfg=6.0, prefix="video/wan2.1_1.3b_fpsattention",
    ),
    "wan2.1_t2v_14b_fpsattention": lambda: trained(
        "T2V 14B", "wan2.1_t2v_14B_fpsattention.safetensors",
        width=1280, height=720, shift=5.0, cfg=5.0, prefix="video/wan2.1_14b_fpsattention",
    ),
    "wan2.1_t2v_stock_with_fpsattention": lambda: stock(
        "wan2.1_t2v_1.3B_fp16.safetensors",
        width=832, height=480, shift=8.0, cfg=6.0, prefix="video/wan2.1_stock_fpsattention",
    ),
}  # fmt: skip


def contents() -> dict[str, str]:
    """Return every file's text by its path below ``workflows/``."""
    files = {}
    for name, build in WORKFLOWS.items():
        nodes, groups = build()
        files[f"{name}.json"] = json.dumps(ui_form(nodes, groups), indent=2) + "\n"
        files[f"api/{name}.json"] = json.dumps(api_form(nodes), indent=2) + "\n"
    return files


def main() -> int:
    for name, text in contents().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
