"""The list of nodes that the host asks for."""

from __future__ import annotations

import logging

from ._api import ComfyExtension, io
from .apply import FPSAttentionApply
from .benchmark import FPSAttentionBenchmark
from .check import FPSAttentionCheck
from .heads import FPSAttentionLoadHeads, register_folder
from .host import MINIMUM_HOST, host_version
from .load import FPSAttentionLoadWan
from .msfp_load import FPSAttentionLoadMsfp
from .preview import FPSAttentionPreview
from .profile import FPSAttentionProfile
from .report import FPSAttentionReport
from .routes import register_routes
from .schedule import FPSAttentionSchedule
from .search_heads import FPSAttentionSearchHeads
from .timestep_lora import FPSAttentionTimestepLora

logger = logging.getLogger(__name__)


class FPSAttentionExtension(ComfyExtension):
    """The pack's nodes."""

    async def on_load(self) -> None:
        """Offer the route to the measured times, name the folders of head tables, and say in one sentence if the host
        is older than what Wan needs to publish its token grid."""
        register_routes()
        register_folder()
        version = host_version()
        if version is not None and version < MINIMUM_HOST:
            logger.warning(
                "FPSAttention needs ComfyUI %s or newer, this is %s; update ComfyUI if sampling fails.",
                ".".join(map(str, MINIMUM_HOST)),
                ".".join(map(str, version)),
            )

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes."""
        return [
            FPSAttentionLoadWan,
            FPSAttentionLoadMsfp,
            FPSAttentionApply,
            FPSAttentionSchedule,
            FPSAttentionLoadHeads,
            FPSAttentionSearchHeads,
            FPSAttentionTimestepLora,
            FPSAttentionReport,
            FPSAttentionPreview,
            FPSAttentionBenchmark,
            FPSAttentionCheck,
            FPSAttentionProfile,
        ]
