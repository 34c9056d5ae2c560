"""The host's node API, pinned to one version and imported here only."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import ComfyExtension, io, ui

__all__ = ["CATEGORY", "ComfyExtension", "FpsHeads", "FpsSchedule", "io", "progress", "show_text", "ui"]

CATEGORY = "model/patch/FPSAttention"

# What travels over this socket is a kernels.schedule.Schedule.
FpsSchedule = io.Custom("FPS_SCHEDULE")
# And over this one a kernels.head_table.HeadTable.
FpsHeads = io.Custom("FPS_HEADS")


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


class _Silent:
    """A progress bar where no host shows one."""

    def update(self, n: int) -> None:
        """Count nothing."""


def progress(total: int, node_id: str | None = None) -> Any:
    """Return the host's progress bar of ``total`` parts for a node; ``.update(n)`` says that ``n`` more are done.

    Without a host that has one, the object does nothing.
    """
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return _Silent()
    try:
        return ProgressBar(total, node_id=node_id)
    except TypeError:
        # Older hosts know the node by themselves.
        return ProgressBar(total)
