"""`GET /metrics`: the metrics for Prometheus; `GET /api/refused`: messages of workers that the bus refused.

The middleware decides who may read the metrics. The refused messages are for owners.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from bot.refused import Refused
from bot.scrape import Scrape
from bot.web.door import METRICS, VISITOR

SCRAPE = web.AppKey("scrape", Scrape)


def routes() -> list[web.RouteDef]:
    return [web.get(METRICS, metrics), web.get("/api/refused", refused)]


async def metrics(request: web.Request) -> web.Response:
    """Return all metrics in the format that the scraper prefers."""
    encode, kind = choose_encoder(request.headers.get("Accept", ""))
    body = await request.app[SCRAPE].page(encode)
    return web.Response(body=body, headers={"Content-Type": kind})


async def refused(request: web.Request) -> web.Response:
    """Return what was refused of workers in the last minute. It may hold text of anybody at the broker."""
    if not request[VISITOR].owner:
        raise Refused("Only the owner of this room may see what it refuses.", 403)
    return web.json_response({"refused": request.app[SCRAPE].refused()})
