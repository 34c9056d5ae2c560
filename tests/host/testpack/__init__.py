"""A throw-away node pack for tests and the demo: conditioning without a text encoder or an image encoder.

Wan's encoders have no small version that the host could load, so this stands in their place. It is never shipped.
"""

from __future__ import annotations

import json

import torch


class FPSTestConditioning:
    """CONDITIONING of zeros, of seeded noise, or from a file."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "noise_seed": ("INT", {"default": 0, "min": 0, "max": 2**31, "tooltip": "0: zeros."}),
                "tokens": ("INT", {"default": 512, "min": 1, "max": 4096}),
            },
            "optional": {
                "path": ("STRING", {"default": "", "tooltip": "A safetensors file with a tensor 'context'."}),
            },
        }

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "testing"

    def make(self, noise_seed, tokens, path=""):
        if path:
            from safetensors.torch import load_file

            context = load_file(path)["context"].float().reshape(1, -1, 4096)
        elif noise_seed:
            generator = torch.Generator().manual_seed(noise_seed)
            context = torch.randn(1, tokens, 4096, generator=generator)
        else:
            context = torch.zeros(1, tokens, 4096)
        return ([[context, {}]],)


class FPSTestVision:
    """CLIP_VISION_OUTPUT of seeded noise, as wide and long as Wan's image encoder gives it."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"noise_seed": ("INT", {"default": 0, "min": 0, "max": 2**31})}}

    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)
    FUNCTION = "make"
    CATEGORY = "testing"

    def make(self, noise_seed):
        from comfy.clip_vision import Output

        output = Output()
        generator = torch.Generator().manual_seed(noise_seed)
        output.penultimate_hidden_states = torch.randn(1, 257, 1280, generator=generator)
        return (output,)


class FPSTestAudio:
    """AUDIO_ENCODER_OUTPUT of seeded noise: so many layers of so many channels, 50 feature frames a second."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"layers": ("INT", {"default": 25}), "channels": ("INT", {"default": 1024})}}

    RETURN_TYPES = ("AUDIO_ENCODER_OUTPUT",)
    FUNCTION = "make"
    CATEGORY = "testing"

    def make(self, layers, channels):
        features = [torch.randn(1, 50, channels, generator=_seeded(i)) for i in range(layers)]
        return ({"encoded_audio_all_layers": features, "audio_samples": 16000},)


class FPSTestFirstFrame:
    """A LATENT whose first frame is kept, as 5B's image-to-video has it."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"latent": ("LATENT",)}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "testing"

    def make(self, latent):
        samples = latent["samples"]
        mask = torch.ones(samples.shape[0], 1, *samples.shape[2:])
        mask[:, :, :1] = 0.0
        return ({**latent, "noise_mask": mask},)


class FPSTestNewerClass:
    """The model as a class of Wan that nobody knows yet."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "testing"

    def make(self, model):
        inner = model.model.diffusion_model
        inner.__class__ = type("NewerWanModel", (type(inner),), {})
        return (model,)


class FPSTestReference:
    """CONDITIONING with a reference picture of seeded noise, as the Fun models take it."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"conditioning": ("CONDITIONING",), "latent": ("LATENT",)}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "testing"

    def make(self, conditioning, latent):
        _, channels, _, height, width = latent["samples"].shape
        picture = torch.randn(1, channels, 1, height, width, generator=_seeded(3))
        return ([[text, {**options, "reference_latents": [picture]}] for text, options in conditioning],)


class FPSTestRuns:
    """What the recorder of a patched MODEL holds, as JSON, after the sampler that gave ``latent``."""

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"latent": ("LATENT",), "model": ("MODEL",)}}

    RETURN_TYPES = ()
    FUNCTION = "show"
    CATEGORY = "testing"
    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **_):  # noqa: N802
        return float("nan")

    def show(self, latent, model):
        from comfy_execution.utils import get_executing_context

        # The recorder outlives a prompt: only what this one sampled.
        prompt_id = get_executing_context().prompt_id
        patched = model.get_attachment("fpsattention")
        runs = [
            {
                "node": run.node_id,
                "notes": run.notes,
                "finished": run.finished,
                "stopped": run.stopped,
                "class": type(model.model.diffusion_model).__name__,
                "steps": [
                    {k: v for k, v in vars(s).items() if k != "heads" and k[0] != "_"} | {"density": s.density}
                    for s in run.steps.values()
                ],
            }
            for run in patched.recorder.runs
            if run.prompt_id == prompt_id
        ]
        return {"ui": {"runs": [json.dumps(runs)]}}


def _seeded(seed):
    return torch.Generator().manual_seed(seed)


_NODES = (
    FPSTestConditioning, FPSTestVision, FPSTestAudio, FPSTestFirstFrame, FPSTestNewerClass, FPSTestReference,
    FPSTestRuns,
)  # fmt: skip
NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {"FPSTestConditioning": "Test Conditioning", "FPSTestVision": "Test Vision"}
