"""What the page asks the server for: the measured times, GET /fpsattention/calibration."""

from __future__ import annotations

import asyncio

from .host import current_backends, current_card, host_attention

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
    """Return the entries of the calibration, the name of the card in use and what backend auto takes there (None where
    it cannot be told); dense times are those of the host's present attention, where that was measured."""
    from ..kernels.calibration import VERSION, Calibration

    calibration = Calibration.load().preferring(host_attention()[0])
    return {
        "card": current_card(),
        "backends": current_backends(),
        "version": VERSION,
        "entries": calibration.entries,
        "problem": calibration.problem,
    }
