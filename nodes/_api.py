"""The host's node API, pinned to one version and imported here only."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io, ui

__all__ = ["CATEGORY", "ComfyExtension", "FpsSchedule", "io", "show_text", "ui"]

CATEGORY = "model/patch/FPSAttention"

# What travels over this socket is a kernels.schedule.Schedule.
FpsSchedule = io.Custom("FPS_SCHEDULE")


def show_text(node_id: str | None, text: str) -> None:
    """Show ``text`` on the node in the page; the page itself shows a node's text output only for its own nodes."""
    if not node_id:
        return
    try:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, node_id)
    except (ImportError, AttributeError):
        # No server (a script that uses the nodes), or a host that cannot show text: the text output remains.
        return
