"""What the page asks the server for: the measured times, GET /fpsattention/calibration."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger(__name__)

PATH = "/fpsattention/calibration"


def register_routes() -> None:
    """Offer the route on the host's server, once; does nothing where there is no server."""
    try:
        from aiohttp import web
        from server import PromptServer

        routes = PromptServer.instance.routes
    except (ImportError, AttributeError):
        return
    if any(getattr(route, "path", None) == PATH for route in routes):
        return

    @routes.get(PATH)
    async def calibration(_: web.Request) -> web.Response:
        # Reading a file and asking a driver wait, the server must not.
        return web.json_response(await asyncio.get_running_loop().run_in_executor(None, answer))


def answer() -> dict:
    """Return the entries of the calibration and the name of the card in use (None where it cannot be told)."""
    from ..kernels.calibration import VERSION, Calibration

    calibration = Calibration.load()
    return {
        "card": current_card(),
        "version": VERSION,
        "entries": calibration.entries,
        "problem": calibration.problem,
    }


def current_card() -> str | None:
    """Return the name of the device that the host computes on, as a calibration knows it; None without one."""
    from ..kernels.cards import card_name

    try:
        from comfy.model_management import get_torch_device

        return card_name(get_torch_device())
    except Exception as error:  # a driver that fails in any way must not cost the page its answer
        logger.debug("FPSAttention cannot tell the card: %s", error)
        return None
