"""API graphs of every Wan variant: its loader, the host's own conditioning node, and samplers under four schedules."""

from __future__ import annotations

from dataclasses import dataclass, field

WIDTH, HEIGHT, LENGTH = 128, 96, 9  # 3 x 6 x 8 = 144 tokens, 48 a frame
SCHEDULES = {
    "plain": None,
    "dense": "0.00 dense",
    "full": "0.00 bf16 - 99 99 99",
    "sparse": "0.00 fp8 x1 1 1 1",
}
MODES = ("one", "two", "stages")


@dataclass
class Variant:
    """One row of the table: model files (two for a pair), the conditioning node with its inputs, what is expected.

    ``calls`` are self-attention calls per evaluation. ``links`` name helper nodes for inputs, ``outputs`` the slots of
    positive, negative and latent (None: from the plain nodes).
    """

    label: str
    files: tuple[str, ...]
    node: str | None
    inputs: dict = field(default_factory=dict)
    outputs: tuple[int | None, int | None, int | None] = (0, 1, 2)
    calls: int = 3
    grid: tuple[int, int, int] = (3, 6, 8)
    front: int = 0
    behind: int = 0
    model_class: str = "WanModel"
    reason: str | None = None
    newer: bool = False
    reference: bool = False
    first_frame: bool = False
    chain: bool = False
    cfg: float = 1.0
    size: tuple[int, int, int] = (WIDTH, HEIGHT, LENGTH)
    modes: tuple[str, ...] = MODES

    def schedules(self, mode: str) -> list[str]:
        """The schedules of ``mode``: two stages need no window of everything."""
        return [name for name in SCHEDULES if name != "full" or mode != "stages"]

    @property
    def sparse_calls(self) -> int:
        """How many of the calls run sparse."""
        return 0 if self.reason and self.newer else 3 if self.reason else self.calls


def pictures(count: int, color: int = 0x8040C0) -> dict:
    """A node that makes ``count`` pictures."""
    inputs = {"width": WIDTH, "height": HEIGHT, "batch_size": count, "color": color}
    return {"class_type": "EmptyImage", "inputs": inputs}


HELPERS = {
    "picture": pictures(1),
    "other": pictures(1, 0x20A030),
    "clip": pictures(LENGTH, 0x3050A0),
    "film": pictures(73, 0x703020),
    "subjects": pictures(2),
    "vision": {"class_type": "FPSTestVision", "inputs": {"noise_seed": 1}},
    "vision_end": {"class_type": "FPSTestVision", "inputs": {"noise_seed": 2}},
    "audio": {"class_type": "FPSTestAudio", "inputs": {"layers": 25, "channels": 1024}},
    "speech": {"class_type": "FPSTestAudio", "inputs": {"layers": 33, "channels": 1280}},
    "camera": {
        "class_type": "WanCameraEmbedding",
        "inputs": {"camera_pose": "Pan Up", "width": WIDTH, "height": HEIGHT, "length": LENGTH},
    },
}

_I2V = {"clip_vision_output": "@vision", "start_image": "@picture"}
_ENDS = {"clip_vision_start_image": "@vision", "clip_vision_end_image": "@vision_end"}
_VACE = {"strength": 1.0, "control_video": "@clip", "reference_image": "@picture"}
_CAMERA = {"start_image": "@picture", "camera_conditions": "@camera"}
_ANIMATE = {
    # Without a face: its encoder takes half a minute a step here, and its attention never reaches an override.
    "clip_vision_output": "@vision", "reference_image": "@picture", "pose_video": "@clip",
    "continue_motion_max_frames": 5, "video_frame_offset": 0,
}  # fmt: skip
_SCAIL = {
    "pose_strength": 1.0,
    "pose_start": 0.0,
    "pose_end": 1.0,
    "reference_image": "@picture",
    "pose_video": "@clip",
}
_512 = (256, 256, 5)
_5B = (256, 192, 9)

VARIANTS = {
    "t2v": Variant("Wan2.1 T2V", ("t2v",), None),
    "i2v": Variant("Wan2.1 I2V", ("i2v",), "WanImageToVideo", _I2V),
    "flf2v": Variant(
        "Wan2.1 FLF2V", ("flf2v",), "WanFirstLastFrameToVideo",
        _ENDS | {"start_image": "@picture", "end_image": "@other"},
    ),
    "fun_control": Variant(
        "Wan2.1 Fun Control", ("fun_control",), "WanFunControlToVideo", _I2V | {"control_video": "@clip"}
    ),
    "fun_inpaint": Variant(
        "Wan2.1 Fun Inpaint", ("i2v",), "WanFunInpaintToVideo", _I2V | {"end_image": "@other"}
    ),
    "fun_reference": Variant(
        "Wan2.2 Fun Control + reference", ("fun22_control",), "Wan22FunControlToVideo",
        {"ref_image": "@picture", "control_video": "@clip"}, front=48,
    ),
    "vace": Variant(
        "Wan2.1 VACE + reference", ("vace",), "WanVaceToVideo", _VACE, (0, 1, 2), 4, (4, 6, 8),
        model_class="VaceWanModel",
    ),
    "vace_two": Variant(
        "Wan2.1 VACE, two controls", ("vace",), "WanVaceToVideo", {"strength": 1.0, "control_video": "@clip"},
        calls=5, model_class="VaceWanModel", chain=True,
    ),
    "camera": Variant(
        "Wan2.1 Fun Camera", ("camera",), "WanCameraImageToVideo", _CAMERA | {"clip_vision_output": "@vision"},
        model_class="CameraWanModel",
    ),
    "camera22": Variant(
        "Wan2.2 Fun Camera", ("camera22",), "WanCameraImageToVideo", _CAMERA, model_class="CameraWanModel"
    ),
    "phantom": Variant(
        "Phantom, two subjects", ("t2v",), "WanPhantomSubjectToVideo", {"images": "@subjects"}, (0, 1, 3),
        grid=(5, 6, 8),
    ),
    "scail": Variant(
        "SCAIL, reference and pose", ("scail",), "WanSCAILToVideo", _SCAIL | {"clip_vision_output": "@vision"},
        grid=(4, 6, 8), behind=36, model_class="SCAILWanModel",
    ),
    "humo": Variant(
        "HuMo 1.7B", ("humo",), "WanHuMoImageToVideo", {"audio_encoder_output": "@speech", "ref_image": "@picture"},
        behind=48, model_class="HumoWanModel",
    ),
    "humo17b": Variant(
        "HuMo 17B", ("humo17b",), "WanHuMoImageToVideo", {"audio_encoder_output": "@speech", "ref_image": "@picture"},
        behind=48, model_class="HumoWanModel",
    ),
    "s2v": Variant(
        "Wan2.2 S2V, reference and motion", ("s2v",), "WanSoundImageToVideo",
        {"audio_encoder_output": "@audio", "ref_image": "@picture", "ref_motion": "@film"},
        behind=116, model_class="WanModel_S2V",
    ),
    "animate": Variant(
        "Wan2.2 Animate", ("animate",), "WanAnimateToVideo", _ANIMATE, calls=5, grid=(4, 6, 8),
        model_class="AnimateWanModel",
    ),
    "a14b_t2v": Variant("Wan2.2 A14B T2V, high and low noise", ("t2v", "t2v_low"), None),
    "a14b_i2v": Variant(
        "Wan2.2 A14B I2V / Fun Inpaint, high and low noise", ("i2v22_high", "i2v22_low"), "WanImageToVideo",
        {"start_image": "@picture"},
    ),
    "5b_t2v": Variant(
        "Wan2.2 5B T2V", ("5b",), "Wan22ImageToVideoLatent", {}, (None, None, 0), size=_5B
    ),
    "5b_i2v": Variant(
        "Wan2.2 5B I2V", ("5b",), "Wan22ImageToVideoLatent", {}, (None, None, 0), size=_5B, first_frame=True
    ),
    "cfg": Variant("Wan2.1 T2V, cfg 6 (condition and no condition)", ("t2v",), None, cfg=6.0),
    "t2v_512": Variant(
        "Wan2.1 T2V, video as long as the text", ("t2v",), None, grid=(2, 16, 16), size=_512, modes=("one",)
    ),
    "vace_512": Variant(
        "Wan2.1 VACE, video as long as the text", ("vace",), "WanVaceToVideo", {"strength": 1.0}, calls=4,
        grid=(2, 16, 16), model_class="VaceWanModel", size=_512, modes=("one",),
        reason="video and text are equally long, so VACE's control blocks cannot be told apart",
    ),
    "newer": Variant(
        "a class of Wan that is not known, with extra tokens", ("newer",), None, model_class="NewerWanModel",
        newer=True, reference=True, reason="48 extra tokens in a model class that is not known",
    ),
}  # fmt: skip


def graph(name: str, variant: Variant) -> dict:
    """The prompt of one variant: three ways of sampling under four schedules, and what was recorded."""
    api: dict = {
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny-vae.safetensors"}},
        "yes": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 1, "tokens": 512}},
        "no": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 0, "tokens": 512}},
    }
    for place, file in enumerate(variant.files):
        _add_models(api, variant, place, file)
    for mode in variant.modes:
        conditions = _conditions(api, variant, mode, 2 if mode == "two" else 1)
        for schedule in variant.schedules(mode):
            _add_samplers(api, variant, name, mode, schedule, conditions)
    return api


def sampler_of(mode: str, schedule: str, variant: Variant) -> list[str]:
    """The ids of the nodes that sampled."""
    key = f"{mode}-{schedule}"
    return [f"{key}-a", f"{key}-b"] if mode == "stages" else [f"{key}-a"]


def _add_models(api: dict, variant: Variant, place: int, file: str) -> None:
    inputs = {"unet_name": f"{file}.safetensors", "weight_dtype": "default"}
    model = [f"model{place}", 0]
    api[model[0]] = {"class_type": "UNETLoader", "inputs": inputs}
    if variant.newer:
        api[f"newer{place}"] = {"class_type": "FPSTestNewerClass", "inputs": {"model": model}}
        model = [f"newer{place}", 0]
    for schedule, text in SCHEDULES.items():
        if text is None:
            api[f"plain{place}"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": model, "shift": 8.0}}
            continue
        inputs = {"model": [f"plain{place}", 0], "backend": "auto", "schedule": text}
        api[f"{schedule}{place}"] = {"class_type": "FPSAttentionApply", "inputs": inputs}


def _conditions(api: dict, variant: Variant, mode: str, batch: int) -> tuple[list, list, list]:
    width, height, length = variant.size
    positive, negative, latent = ["yes", 0], ["no", 0], [f"latent-{mode}", 0]
    if variant.node is None:
        inputs = {"width": width, "height": height, "length": length, "batch_size": batch}
        api[latent[0]] = {"class_type": "EmptyHunyuanLatentVideo", "inputs": inputs}
    else:
        inputs = {"width": width, "height": height, "length": length, "batch_size": batch, "vae": ["vae", 0]}
        if variant.outputs[0] is not None:
            inputs |= {"positive": positive, "negative": negative}
        for key, value in variant.inputs.items():
            if isinstance(value, str) and value.startswith("@"):
                api[value[1:]] = HELPERS[value[1:]]
                value = [value[1:], 0]
            inputs[key] = value
        for again in range(2 if variant.chain else 1):
            node = f"condition-{mode}-{again}"
            api[node] = {"class_type": variant.node, "inputs": dict(inputs)}
            found = [None if slot is None else [node, slot] for slot in variant.outputs]
            positive, negative, latent = (new or old for new, old in zip(found, (positive, negative, latent)))
            inputs |= {"positive": positive, "negative": negative} if variant.outputs[0] is not None else {}
    if variant.outputs[0] is None:
        # This node makes one video, whatever its batch size says.
        api[f"batch-{mode}"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": latent, "amount": batch}}
        latent = [f"batch-{mode}", 0]
    if variant.first_frame:
        api[f"first-{mode}"] = {"class_type": "FPSTestFirstFrame", "inputs": {"latent": latent}}
        latent = [f"first-{mode}", 0]
    if variant.reference:
        for key, link in (("positive", positive), ("negative", negative)):
            inputs = {"conditioning": link, "latent": latent}
            api[f"{key}-{mode}"] = {"class_type": "FPSTestReference", "inputs": inputs}
        positive, negative = [f"positive-{mode}", 0], [f"negative-{mode}", 0]
    return positive, negative, latent


def _add_samplers(api: dict, variant: Variant, name: str, mode: str, schedule: str, conditions: tuple) -> None:
    positive, negative, latent = conditions
    key = f"{mode}-{schedule}"
    last = len(variant.files) - 1
    common = {
        "steps": 4, "cfg": variant.cfg, "sampler_name": "euler", "scheduler": "simple", "positive": positive,
        "negative": negative, "noise_seed": 7 + MODES.index(mode),
    }  # fmt: skip
    if mode != "stages":
        stage = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "enable"}
        inputs = common | stage | {"model": [f"{schedule}0", 0], "latent_image": latent}
        api[f"{key}-a"] = {"class_type": "KSamplerAdvanced", "inputs": inputs}
        end = f"{key}-a"
    else:
        first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "enable"}
        second = {
            "add_noise": "disable",
            "start_at_step": 2,
            "end_at_step": 4,
            "return_with_leftover_noise": "disable",
        }
        inputs = common | first | {"model": [f"{schedule}0", 0], "latent_image": latent}
        api[f"{key}-a"] = {"class_type": "KSamplerAdvanced", "inputs": inputs}
        inputs = common | second | {"model": [f"{schedule}{last}", 0], "latent_image": [f"{key}-a", 0]}
        api[f"{key}-b"] = {"class_type": "KSamplerAdvanced", "inputs": inputs}
        end = f"{key}-b"
    prefix = f"{name}/{key}"
    api[f"{key}-save"] = {"class_type": "SaveLatent", "inputs": {"samples": [end, 0], "filename_prefix": prefix}}
    if schedule not in ("plain", "dense"):
        for place in {0, last}:
            inputs = {"latent": [end, 0], "model": [f"{schedule}{place}", 0]}
            api[f"{key}-runs{place}"] = {"class_type": "FPSTestRuns", "inputs": inputs}
