"""What the host says of each node type that the shipped workflows use; a test holds this equal to a running host."""

from __future__ import annotations

from dataclasses import dataclass, field

Slots = list[tuple[str, str]]


@dataclass(frozen=True)
class NodeType:
    """Display name, linked inputs (name, type), widgets in order, outputs (name, type), widgets that may be linked."""

    display: str
    inputs: Slots = field(default_factory=list)
    widgets: list[str] = field(default_factory=list)
    outputs: Slots = field(default_factory=list)
    linkable: dict[str, str] = field(default_factory=dict)


MODEL, CLIP, VAE = [("MODEL", "MODEL")], [("CLIP", "CLIP")], [("VAE", "VAE")]
LATENT, IMAGE, TEXT = [("LATENT", "LATENT")], [("IMAGE", "IMAGE")], [("text", "STRING")]
SCHEDULE = ("schedule", "FPS_SCHEDULE")
SCHEDULE_OR_TEXT = ("schedule", "FPS_SCHEDULE,STRING")
HEADS = ("heads", "FPS_HEADS")
PROMPTS: Slots = [("positive", "CONDITIONING"), ("negative", "CONDITIONING")]
SIZE = ["width", "height", "length", "batch_size"]

OURS = {
    "FPSAttentionLoadWan": NodeType(
        "Load FPSAttention Wan", [], ["model_name", "weight_dtype"], [*MODEL, SCHEDULE, *TEXT]
    ),
    "FPSAttentionLoadMsfp": NodeType(
        "Load MSFP Wan", [], ["model_name", "activations"], [*MODEL, SCHEDULE, *TEXT]
    ),
    "FPSAttentionTimestepLora": NodeType(
        "Timestep-aware LoRA", [("model", "MODEL")], ["lora_name", "strength"], [*MODEL, *TEXT]
    ),
    "FPSAttentionApply": NodeType(
        "FPSAttention (Wan)", [("model", "MODEL"), SCHEDULE_OR_TEXT, HEADS], ["backend", "dense_blocks"], MODEL
    ),
    "FPSAttentionSchedule": NodeType("FPSAttention Schedule", [], ["preset", "schedule"], [SCHEDULE, *TEXT]),
    "FPSAttentionPreview": NodeType(
        "FPSAttention Preview", [SCHEDULE_OR_TEXT, ("model", "MODEL")],
        ["width", "height", "frames", "steps", "shift"], [*IMAGE, *TEXT],
    ),
    "FPSAttentionProfile": NodeType(
        "FPSAttention Profile", [("model", "MODEL"), *PROMPTS, ("latent_image", "LATENT")],
        ["seed", "steps", "cfg", "sampler_name", "scheduler", "effort", "aim", "density", "psnr", "phases"],
        [SCHEDULE, *TEXT, ("report", "STRING"), *IMAGE], {"seed": "INT"},
    ),
    "FPSAttentionSearchHeads": NodeType(
        "Search Head Patterns", [("model", "MODEL"), *PROMPTS, ("latent_image", "LATENT"), SCHEDULE_OR_TEXT],
        [
            "seed", "steps", "cfg", "sampler_name", "scheduler", "runs", "candidates", "rule", "budget", "name",
            "dense_steps", "dense_blocks", "patterns", "stripes", "bands", "branches", "cost", "error", "lambda_cost",
            "epsilon",
        ],
        [HEADS, ("schedule", "FPS_SCHEDULE"), *TEXT, *IMAGE], {"seed": "INT"},
    ),
    "FPSAttentionReport": NodeType(
        "FPSAttention Report", [("latent", "LATENT"), ("model", "MODEL")], [], [*LATENT, *TEXT, *IMAGE]
    ),
}  # fmt: skip

CORE = {
    "UNETLoader": NodeType("Load Diffusion Model", [], ["unet_name", "weight_dtype"], MODEL),
    "CLIPLoader": NodeType("Load CLIP", [], ["clip_name", "type", "device"], CLIP),
    "VAELoader": NodeType("Load VAE", [], ["vae_name"], VAE),
    "CLIPVisionLoader": NodeType("Load CLIP Vision", [], ["clip_name"], [("CLIP_VISION", "CLIP_VISION")]),
    "CLIPVisionEncode": NodeType(
        "CLIP Vision Encode", [("clip_vision", "CLIP_VISION"), ("image", "IMAGE")], ["crop"],
        [("CLIP_VISION_OUTPUT", "CLIP_VISION_OUTPUT")],
    ),
    "LoraLoaderModelOnly": NodeType("Load LoRA", [("model", "MODEL")], ["lora_name", "strength_model"], MODEL),
    "LoadImage": NodeType("Load Image", [], ["image"], [*IMAGE, ("MASK", "MASK")]),
    "CLIPTextEncode": NodeType(
        "CLIP Text Encode (Prompt)", [("clip", "CLIP")], ["text"], [("CONDITIONING", "CONDITIONING")]
    ),
    "ModelSamplingSD3": NodeType("ModelSamplingSD3", [("model", "MODEL")], ["shift"], MODEL),
    "EmptyHunyuanLatentVideo": NodeType("Empty HunyuanVideo 1.0 Latent", [], SIZE, LATENT),
    "WanImageToVideo": NodeType(
        "WanImageToVideo",
        [*PROMPTS, ("vae", "VAE"), ("clip_vision_output", "CLIP_VISION_OUTPUT"), ("start_image", "IMAGE")],
        SIZE, [*PROMPTS, ("latent", "LATENT")],
    ),
    "WanVaceToVideo": NodeType(
        "WanVaceToVideo",
        [*PROMPTS, ("vae", "VAE"), ("control_video", "IMAGE"), ("control_masks", "MASK"), ("reference_image", "IMAGE")],
        [*SIZE, "strength"], [*PROMPTS, ("latent", "LATENT"), ("trim_latent", "INT")],
    ),
    "TrimVideoLatent": NodeType(
        "Trim Video Latent", [("samples", "LATENT")], ["trim_amount"], LATENT, {"trim_amount": "INT"}
    ),
    "PreviewAny": NodeType("Preview as Text", [("source", "*")], [], [("STRING", "STRING")]),
    "PrimitiveString": NodeType("String", [], ["value"], [("STRING", "STRING")]),
    "PrimitiveInt": NodeType("Int", [], ["value"], [("INT", "INT")]),
    "KSampler": NodeType(
        "KSampler", [("model", "MODEL"), *PROMPTS, ("latent_image", "LATENT")],
        ["seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"], LATENT, {"seed": "INT"},
    ),
    "VAEDecode": NodeType("VAE Decode", [("samples", "LATENT"), ("vae", "VAE")], [], IMAGE),
    "ImageStitch": NodeType(
        "Image Stitch", [("image1", "IMAGE"), ("image2", "IMAGE")],
        ["direction", "match_image_size", "spacing_width", "spacing_color"], IMAGE,
    ),
    "CreateVideo": NodeType("Create Video", [("images", "IMAGE"), ("audio", "AUDIO")], ["fps"], [("VIDEO", "VIDEO")]),
    "SaveVideo": NodeType("Save Video", [("video", "VIDEO")], ["filename_prefix", "format", "codec"], []),
    "MarkdownNote": NodeType("Markdown Note", [], ["text"], []),
}  # fmt: skip

TYPES = OURS | CORE

# Number widgets beside which the page puts a second widget that says what becomes of the number after a run.
CONTROLLED = {("PrimitiveInt", "value")}


def is_controlled(node_type: str, widget: str) -> bool:
    """Whether the page adds that second widget beside ``widget``."""
    return widget in ("seed", "noise_seed") or (node_type, widget) in CONTROLLED
