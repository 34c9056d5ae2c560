"""The shipped workflows: one function each, which returns its columns from left to right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import notes
from .forms import Column, Graph, Node, place
from .parts import (
    APPLY,
    BLUE,
    CLIP_VISION,
    DECODE,
    DECODER,
    LOAD,
    NEGATIVE_ID,
    PICTURE,
    POSITIVE_ID,
    REPORT,
    SAMPLER,
    SCHEDULE,
    SHIFT,
    SIZE,
    apply,
    as_text,
    create_video,
    decode,
    encoders,
    note,
    official,
    prompts,
    report,
    sampler,
    save_video,
    schedule,
    shift,
    size,
    stock_model,
)

# Node ids beyond the shared ones.
PICTURE_ID, VISION, VISION_ENCODE, CONDITION, TRIM, LORA, PROFILE, PREVIEW = range(20, 28)
SEED, DENSE_SCHEDULE, DENSE_APPLY, DENSE_SAMPLER, DENSE_REPORT, DENSE_DECODE, STITCH = range(30, 37)
REPORT_TEXT, PROFILE_TEXT, SEARCH, SEARCH_TEXT, HUB, HUB_TEXT = range(40, 46)

SMALL, LARGE = "wan2.1_t2v_1.3B_fp16.safetensors", "wan2.1_t2v_14B_fp16.safetensors"
I2V, VACE = "wan2.1_i2v_480p_14B_fp16.safetensors", "wan2.1_vace_1.3B_fp16.safetensors"
MSFP_FILE, HUB_FILE = "wan2.1_t2v_1.3B_msfp.safetensors", "wan2.1_t2v_1.3B_msfp_talora.safetensors"
LORA_FILE = "wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors"
LORA_URL = f"https://huggingface.co/lightx2v/Wan2.1-Distill-Loras/resolve/main/{LORA_FILE}"


def view(width: int, height: int, steps: int, shift_: float, heads: int, layers: int) -> dict[str, Any]:
    """What the schedule's editor draws for: the workflow's own size and sampler."""
    return {
        "width": width, "height": height, "frames": 81, "steps": steps, "shift": shift_, "heads": heads,
        "layers": layers, "side": 16,
    }  # fmt: skip


def attention(model: tuple[int, int] = (LOAD, 0), preset: str = "custom", **seen: Any) -> Column:
    """Schedule and patch."""
    return Column("Attention", 560, [schedule(preset=preset, **view(**seen)), apply(model, (SCHEDULE, 0))])


def ending(prefix: str, samples: tuple[int, int] = (SAMPLER, 0), model: tuple[int, int] = (APPLY, 0)) -> list[Column]:
    """Report and video."""
    return [
        Column("What ran", 720, [report(samples, model), as_text((REPORT, 1), "Report as text", REPORT_TEXT)]),
        Column("Video", 560, [decode((REPORT, 0)), create_video((DECODE, 0)), save_video(prefix)]),
    ]


def trained(label: str, file: str, width: int, height: int, shift_: float, cfg: float, prefix: str) -> list[Column]:
    load = Node(
        LOAD, "FPSAttentionLoadWan", 260, {"model_name": file, "weight_dtype": "default"}, color=BLUE
    )  # fmt: skip
    return [
        note(notes.TRAINED, size=label),
        Column("Models and size", 400, [load, *encoders(), size(width, height)]),
        Column("Prompt", 420, prompts()),
        Column("Sample", 340, [shift(shift_, (LOAD, 0)), sampler((SHIFT, 0), cfg=cfg)]),
        *ending(prefix, model=(LOAD, 0)),
    ]


def stock() -> list[Column]:
    return [
        note(notes.STOCK, model=SMALL),
        Column("Models and size", 400, [stock_model(SMALL), *encoders(), size(832, 480)]),
        attention(width=832, height=480, steps=30, shift_=8.0, heads=12, layers=30),
        Column("Prompt", 420, prompts()),
        Column("Sample", 340, [shift(8.0, (APPLY, 0)), sampler((SHIFT, 0))]),
        *ending("video/wan2.1_stock_fpsattention"),
    ]


def image_to_video() -> list[Column]:
    vision = Node(
        VISION, "CLIPVisionLoader", 80, {"clip_name": CLIP_VISION}, models=[official("clip_vision", CLIP_VISION)]
    )  # fmt: skip
    picture = Node(PICTURE_ID, "LoadImage", 420, {"image": PICTURE})
    encode = Node(
        VISION_ENCODE, "CLIPVisionEncode", 100, {"crop": "none"}, {"clip_vision": (VISION, 0), "image": (PICTURE_ID, 0)}
    )
    condition = Node(
        CONDITION, "WanImageToVideo", 260, {"width": 832, "height": 480, "length": 81, "batch_size": 1},
        {
            "positive": (POSITIVE_ID, 0), "negative": (NEGATIVE_ID, 0), "vae": (DECODER, 0),
            "clip_vision_output": (VISION_ENCODE, 0), "start_image": (PICTURE_ID, 0),
        },
    )  # fmt: skip
    text = (
        "The subject turns its head slowly towards the camera, a light breeze moves the scene, the camera holds still."
    )
    sample = sampler((SHIFT, 0), (CONDITION, 2), positive=(CONDITION, 0), negative=(CONDITION, 1), cfg=5.0)
    return [
        note(notes.IMAGE_TO_VIDEO, model=I2V, clip_vision=CLIP_VISION),
        Column("Models and picture", 400, [stock_model(I2V), *encoders(), vision, picture]),
        attention(width=832, height=480, steps=30, shift_=3.0, heads=40, layers=40),
        Column("Prompt and picture", 420, [*prompts(text), encode]),
        Column("Sample", 340, [shift(3.0, (APPLY, 0)), condition, sample]),
        *ending("video/wan2.1_i2v_fpsattention"),
    ]


def vace() -> list[Column]:
    picture = Node(PICTURE_ID, "LoadImage", 420, {"image": PICTURE}, title="Reference picture")
    condition = Node(
        CONDITION, "WanVaceToVideo", 300,
        {"width": 832, "height": 480, "length": 81, "batch_size": 1, "strength": 1.0},
        {
            "positive": (POSITIVE_ID, 0), "negative": (NEGATIVE_ID, 0), "vae": (DECODER, 0),
            "reference_image": (PICTURE_ID, 0),
        },
    )  # fmt: skip
    trim = Node(
        TRIM,
        "TrimVideoLatent",
        80,
        {"trim_amount": 0},
        {"samples": (REPORT, 0), "trim_amount": (CONDITION, 3)},
        "Trim the reference",
    )
    sample = sampler((SHIFT, 0), (CONDITION, 2), positive=(CONDITION, 0), negative=(CONDITION, 1))
    what_ran, video = ending("video/wan2.1_vace_fpsattention")
    video.nodes[0] = decode((TRIM, 0))
    video.nodes.insert(0, trim)
    return [
        note(notes.VACE, model=VACE),
        Column("Models and reference", 400, [stock_model(VACE), *encoders(), picture]),
        attention(width=832, height=480, steps=30, shift_=8.0, heads=12, layers=30),
        Column("Prompt", 420, prompts("The subject of the picture walks along a beach at sunset, handheld camera.")),
        Column("Sample", 340, [shift(8.0, (APPLY, 0)), condition, sample]),
        what_ran,
        video,
    ]


def few_steps() -> list[Column]:
    lora = Node(
        LORA, "LoraLoaderModelOnly", 110, {"lora_name": LORA_FILE, "strength_model": 1.0}, {"model": (LOAD, 0)},
        models=[{"name": LORA_FILE, "url": LORA_URL, "directory": "loras"}],
    )  # fmt: skip
    return [
        note(notes.FEW_STEPS, model=LARGE, lora=LORA_FILE),
        Column("Models and size", 400, [stock_model(LARGE), lora, *encoders(), size(832, 480)]),
        attention((LORA, 0), "few-step", width=832, height=480, steps=4, shift_=5.0, heads=40, layers=40),
        Column("Prompt", 420, prompts()),
        Column(
            "Sample", 340, [shift(5.0, (APPLY, 0)), sampler((SHIFT, 0), steps=4, cfg=1.0, sampler_name="lcm")]
        ),
        *ending("video/wan2.1_4steps_fpsattention"),
    ]  # fmt: skip


def compare() -> list[Column]:
    seed = Node(SEED, "PrimitiveInt", 110, {"value": 42}, title="Seed for both", after="fixed")
    dense = Node(DENSE_SCHEDULE, "PrimitiveString", 80, {"value": "0.00 dense"}, title="Schedule: all dense")
    sparse = schedule(**view(832, 480, 30, 8.0, 12, 30))
    stitch = Node(
        STITCH, "ImageStitch", 180,
        {"direction": "right", "match_image_size": True, "spacing_width": 16, "spacing_color": "black"},
        {"image1": (DENSE_DECODE, 0), "image2": (DECODE, 0)}, "Dense left, FPSAttention right",
    )  # fmt: skip
    common = {"seed_from": (SEED, 0), "after": "fixed"}
    return [
        note(notes.COMPARE, model=SMALL),
        Column(
            "Models, size, seed", 400,
            [stock_model(SMALL), shift(8.0, (LOAD, 0)), *encoders(), size(832, 480), seed],
        ),
        Column("Prompt", 420, prompts()),
        Column(
            "Attention: dense, FPSAttention", 560,
            [
                dense, apply((SHIFT, 0), (DENSE_SCHEDULE, 0), DENSE_APPLY, "FPSAttention (dense)"),
                sparse, apply((SHIFT, 0), (SCHEDULE, 0)),
            ],
        ),
        Column(
            "Sample", 340,
            [
                sampler((DENSE_APPLY, 0), number=DENSE_SAMPLER, title="KSampler, dense", **common),
                sampler((APPLY, 0), title="KSampler, FPSAttention", **common),
            ],
        ),
        Column(
            "What ran", 560,
            [
                report((DENSE_SAMPLER, 0), (DENSE_APPLY, 0), DENSE_REPORT, height=520, title="Report, dense"),
                report((SAMPLER, 0), (APPLY, 0), height=520, title="Report, FPSAttention"),
            ],
        ),
        Column(
            "Video", 640,
            [
                decode((DENSE_REPORT, 0), DENSE_DECODE), decode((REPORT, 0)), stitch, create_video((STITCH, 0)),
                save_video("video/wan2.1_dense_and_fpsattention"),
            ],
        ),
    ]  # fmt: skip


def profile() -> list[Column]:
    look = Node(
        PROFILE, "FPSAttentionProfile", 900,
        {
            "seed": 42, "steps": 20, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple", "effort": "runs",
            "aim": "density", "density": 0.30, "psnr": 25.0, "phases": 3,
        },
        {
            "model": (SHIFT, 0), "positive": (POSITIVE_ID, 0), "negative": (NEGATIVE_ID, 0),
            "latent_image": (SIZE, 0),
        },
        color=BLUE, after="fixed",
    )  # fmt: skip
    draw = Node(
        PREVIEW, "FPSAttentionPreview", 760,
        {"width": 832, "height": 480, "frames": 81, "steps": 20, "shift": 8.0},
        {"schedule": (PROFILE, 0), "model": (SHIFT, 0)}, color=BLUE,
    )  # fmt: skip
    return [
        note(notes.PROFILE, model=SMALL),
        Column("Models and size", 400, [stock_model(SMALL), shift(8.0, (LOAD, 0)), *encoders(), size(832, 480)]),
        Column("Prompt", 420, prompts()),
        Column("Profile", 600, [look, as_text((PROFILE, 1), "Schedule to keep", PROFILE_TEXT, 160)]),
        Column("Schedule", 560, [draw]),
        Column("Sample", 340, [apply((SHIFT, 0), (PROFILE, 0)), sampler((APPLY, 0), steps=20)]),
        *ending("video/wan2.1_profiled"),
    ]


def search() -> list[Column]:
    look = Node(
        SEARCH, "FPSAttentionSearchHeads", 900,
        {
            "seed": 42, "steps": 20, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple", "runs": 1,
            "candidates": "default", "rule": "budget", "budget": 30.0, "name": "wan2.1_t2v_1.3b", "dense_steps": 2,
            "dense_blocks": "", "patterns": "skip\nwindow 1 all all\nwindow all 30% 30%\nfirst 1", "stripes": 10.0,
            "bands": "steps", "branches": "joint", "cost": "density", "error": "normalized", "lambda_cost": 0.05,
            "epsilon": 0.05,
        },
        {
            "model": (SHIFT, 0), "positive": (POSITIVE_ID, 0), "negative": (NEGATIVE_ID, 0),
            "latent_image": (SIZE, 0),
        },
        color=BLUE, after="fixed",
    )  # fmt: skip
    return [
        note(notes.SEARCH, model=SMALL),
        Column("Models and size", 400, [stock_model(SMALL), shift(8.0, (LOAD, 0)), *encoders(), size(832, 480)]),
        Column("Prompt", 420, prompts()),
        Column("Search", 600, [look, as_text((SEARCH, 2), "What was found", SEARCH_TEXT, 320)]),
        Column("Sample", 340, [apply((SHIFT, 0), None, heads=(SEARCH, 0)), sampler((APPLY, 0), steps=20)]),
        *ending("video/wan2.1_head_patterns"),
    ]


def four_bits() -> list[Column]:
    load = Node(
        LOAD, "FPSAttentionLoadMsfp", 260, {"model_name": MSFP_FILE, "activations": "as trained"}, color=BLUE
    )  # fmt: skip
    hub = Node(
        HUB, "FPSAttentionTimestepLora", 220, {"lora_name": HUB_FILE, "strength": 1.0}, {"model": (LOAD, 0)}, color=BLUE
    )  # fmt: skip
    return [
        note(notes.FOUR_BITS, model=MSFP_FILE, lora=HUB_FILE),
        Column("Models and size", 400, [load, *encoders(), size(832, 480)]),
        Column("LoRA by noise level", 420, [hub, as_text((HUB, 1), "Which LoRA acts when", HUB_TEXT)]),
        Column("Prompt", 420, prompts()),
        Column("Sample", 340, [shift(8.0, (HUB, 0)), sampler((SHIFT, 0))]),
        *ending("video/wan2.1_msfp", model=(HUB, 0)),
    ]


WORKFLOWS: dict[str, Callable[[], list[Column]]] = {
    "wan2.1_t2v_1.3b_fpsattention": lambda: trained(
        "T2V 1.3B", "wan2.1_t2v_1.3B_fpsattention.safetensors", 832, 480, 8.0, 6.0, "video/wan2.1_1.3b_fpsattention"
    ),
    "wan2.1_t2v_14b_fpsattention": lambda: trained(
        "T2V 14B", "wan2.1_t2v_14B_fpsattention.safetensors", 1280, 720, 5.0, 5.0, "video/wan2.1_14b_fpsattention"
    ),
    "wan2.1_t2v_stock_with_fpsattention": stock,
    "wan2.1_i2v_14b_with_fpsattention": image_to_video,
    "wan2.1_vace_with_fpsattention": vace,
    "wan2.1_t2v_14b_4_steps_with_fpsattention": few_steps,
    "wan2.1_compare_dense_and_fpsattention": compare,
    "wan2.1_profile_schedule_sample": profile,
    "wan2.1_search_head_patterns_sample": search,
    "wan2.1_t2v_msfp_with_timestep_lora": four_bits,
}


def graph(name: str) -> Graph:
    """Return the shipped workflow called ``name``, with every node in its place."""
    return place(WORKFLOWS[name]())
