"""Nodes that several of the shipped workflows share; ids 1 to 12 mean the same in each of them."""

from __future__ import annotations

from typing import Any

from .forms import Column, Node

OFFICIAL = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
CLIP_VISION = "clip_vision_h.safetensors"
# Every installation of the host has this picture in its input folder.
PICTURE = "example.png"

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

GREEN, BLUE, VIOLET = ("#233", "#355"), ("#223", "#335"), ("#323", "#535")

# Ids, the same in every workflow that has such a node.
NOTE, CLIP, DECODER, POSITIVE_ID, NEGATIVE_ID, SIZE, SHIFT, SAMPLER, REPORT, DECODE, VIDEO, SAVE = range(1, 13)
LOAD, SCHEDULE, APPLY = 13, 14, 15

Source = tuple[int, int]


def official(folder: str, name: str) -> dict[str, str]:
    """Where ComfyUI's own repackaging of Wan2.1 keeps a file."""
    return {"name": name, "url": f"{OFFICIAL}/{folder}/{name}", "directory": folder}


def note(text: str, **names: str) -> Column:
    text = text.format(text_encoder=TEXT_ENCODER, vae=VAE, **names)
    return Column("", 400, [Node(NOTE, "MarkdownNote", 760, {"text": text}, title="Read me", color=VIOLET)])


def stock_model(file: str) -> Node:
    return Node(
        LOAD, "UNETLoader", 100, {"unet_name": file, "weight_dtype": "default"},
        models=[official("diffusion_models", file)],
    )  # fmt: skip


def encoders() -> list[Node]:
    """Text encoder and VAE."""
    return [
        Node(
            CLIP, "CLIPLoader", 140, {"clip_name": TEXT_ENCODER, "type": "wan", "device": "default"},
            models=[official("text_encoders", TEXT_ENCODER)],
        ),
        Node(DECODER, "VAELoader", 80, {"vae_name": VAE}, models=[official("vae", VAE)]),
    ]  # fmt: skip


def size(width: int, height: int) -> Node:
    widgets = {"width": width, "height": height, "length": 81, "batch_size": 1}
    return Node(SIZE, "EmptyHunyuanLatentVideo", 180, widgets)


def prompts(text: str = POSITIVE) -> list[Node]:
    return [
        Node(POSITIVE_ID, "CLIPTextEncode", 260, {"text": text}, {"clip": (CLIP, 0)}, "Positive prompt", color=GREEN),
        Node(
            NEGATIVE_ID, "CLIPTextEncode", 240, {"text": NEGATIVE}, {"clip": (CLIP, 0)}, "Negative prompt",
            color=GREEN,
        ),
    ]  # fmt: skip


def schedule(number: int = SCHEDULE, preset: str = "custom", *, tall: int = 820, **view: Any) -> Node:
    """The schedule node, as high as its editor needs; ``view`` is what the editor draws for."""
    return Node(
        number, "FPSAttentionSchedule", tall, {"preset": preset, "schedule": MILD}, color=BLUE,
        properties={"fps_view": view} if view else {},
    )  # fmt: skip


def apply(
    model: Source, source: Source | None, number: int = APPLY, title: str = "", heads: Source | None = None
) -> Node:
    links = {"model": model} | ({"schedule": source} if source else {}) | ({"heads": heads} if heads else {})
    return Node(number, "FPSAttentionApply", 120, {"backend": "auto", "dense_blocks": ""}, links, title, color=BLUE)


def shift(value: float, model: Source, number: int = SHIFT) -> Node:
    return Node(number, "ModelSamplingSD3", 80, {"shift": value}, {"model": model})


def sampler(model: Source, latent: Source = (SIZE, 0), number: int = SAMPLER, **options: Any) -> Node:
    """KSampler; options: positive, negative (sources), seed_from, title, after, and its widgets' values."""
    links = {
        "model": model,
        "positive": options.pop("positive", (POSITIVE_ID, 0)),
        "negative": options.pop("negative", (NEGATIVE_ID, 0)),
        "latent_image": latent,
    }
    if seed_from := options.pop("seed_from", None):
        links["seed"] = seed_from
    title, after = options.pop("title", ""), options.pop("after", "randomize")
    widgets = {"seed": 42, "steps": 30, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple", "denoise": 1.0}
    return Node(number, "KSampler", 360, widgets | options, links, title, after=after)


def report(latent: Source, model: Source, number: int = REPORT, *, height: int = 560, title: str = "") -> Node:
    return Node(number, "FPSAttentionReport", height, {}, {"latent": latent, "model": model}, title, color=BLUE)


def as_text(source: Source, title: str, number: int, height: int = 320) -> Node:
    """A node that keeps a text in sight; the page shows a node's own text only until the run ends."""
    return Node(number, "PreviewAny", height, {}, {"source": source}, title)


def decode(samples: Source, number: int = DECODE) -> Node:
    return Node(number, "VAEDecode", 70, {}, {"samples": samples, "vae": (DECODER, 0)})


def create_video(images: Source) -> Node:
    return Node(VIDEO, "CreateVideo", 110, {"fps": 16.0}, {"images": images})


def save_video(prefix: str) -> Node:
    widgets = {"filename_prefix": prefix, "format": "auto", "codec": "auto"}
    return Node(SAVE, "SaveVideo", 580, widgets, {"video": (VIDEO, 0)})
