"""`GET /metrics`: the house's numbers, as Prometheus reads them. The door decides who may.

Knows how a scraper asks; knows nothing of what is counted.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from bot.scrape import Scrape
from bot.web.door import METRICS

SCRAPE = web.AppKey("scrape", Scrape)


def routes() -> list[web.RouteDef]:
    """The one address."""
    return [web.get(METRICS, metrics)]


async def metrics(request: web.Request) -> web.Response:
    """Everything, in the form that the scraper prefers."""
    encode, kind = choose_encoder(request.headers.get("Accept", ""))
    body = await request.app[SCRAPE].page(encode)
    return web.Response(body=body, headers={"Content-Type": kind})
