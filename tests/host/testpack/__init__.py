"""A throw-away node pack for tests and the demo: conditioning without a text encoder or an image encoder.

Wan's encoders have no small version that the host could load, so this stands in their place. It is never shipped.
"""

from __future__ import annotations

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


NODE_CLASS_MAPPINGS = {"FPSTestConditioning": FPSTestConditioning, "FPSTestVision": FPSTestVision}
NODE_DISPLAY_NAME_MAPPINGS = {"FPSTestConditioning": "Test Conditioning", "FPSTestVision": "Test Vision"}
