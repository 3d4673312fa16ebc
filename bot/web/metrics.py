"""`GET /metrics`: the house's numbers, as Prometheus reads them; `GET /api/refused`: what the bus did not take.

The door decides who may have the numbers, the rest is for owners. Knows how a scraper asks, not what is counted.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from bot.refused import Refused
from bot.scrape import Scrape
from bot.web.door import METRICS, VISITOR

SCRAPE = web.AppKey("scrape", Scrape)


def routes() -> list[web.RouteDef]:
    """The two addresses."""
    return [web.get(METRICS, metrics), web.get("/api/refused", refused)]


async def metrics(request: web.Request) -> web.Response:
    """Everything, in the form that the scraper prefers."""
    encode, kind = choose_encoder(request.headers.get("Accept", ""))
    body = await request.app[SCRAPE].page(encode)
    return web.Response(body=body, headers={"Content-Type": kind})


async def refused(request: web.Request) -> web.Response:
    """What workers said within the last minute and was not taken. It may hold words of anybody at the broker."""
    if not request[VISITOR].owner:
        raise Refused("Only whoever runs this room may see what it refuses.", 403)
    return web.json_response({"refused": request.app[SCRAPE].refused()})
