"""`GET /api/jobs/{id}/why`: why a job waits, for `darkroom jobs why` on this machine, and whoever holds its key.

Of any server, and of private jobs too, since it says nothing of their words. Knows the studio's view of a job.
"""

from __future__ import annotations

from aiohttp import web

from bot.refused import Refused
from bot.web.door import GATE
from bot.web.live import STUDIO


def routes() -> list[web.RouteDef]:
    """The one address."""
    return [web.get("/api/jobs/{id}/why", why)]


async def why(request: web.Request) -> web.Response:
    """What only the running bot knows of it: the live workers, how far it is, and when it will be done."""
    if not request.app[GATE].is_terminal(request.headers.get("Authorization", "")):
        raise Refused("Only the terminal of this machine may ask for that.", 403)
    view = await request.app[STUDIO].view(request.match_info["id"])
    return web.json_response(
        {"id": view.id, "state": view.state, "why": view.why, "place": view.ahead, "eta": view.eta, "step": view.step}
    )
