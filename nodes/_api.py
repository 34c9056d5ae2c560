"""The host's node API, pinned to one version and imported here only."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io, ui

__all__ = ["CATEGORY", "ComfyExtension", "FpsSchedule", "io", "ui"]

CATEGORY = "model/patch/FPSAttention"

# What travels over this socket is a kernels.schedule.Schedule.
FpsSchedule = io.Custom("FPS_SCHEDULE")
