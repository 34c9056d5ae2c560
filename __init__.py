"""FPSAttention for ComfyUI: FP8 sliding-tile sparse attention for Wan2.1, scheduled per denoising step.

ComfyUI imports this file; everything else imports the package as ``fpsattention`` (see ``fpsattention.py``).
Nothing heavy is imported here: nodes load inside ``comfy_entrypoint``.
"""

from __future__ import annotations

__version__ = "0.1.0"

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint():
    """Return the pack's ``ComfyExtension``; the host calls this once at start."""
    from .nodes.extension import FPSAttentionExtension

    return FPSAttentionExtension()
