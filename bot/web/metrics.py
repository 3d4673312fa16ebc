"""`GET /metrics`: the metrics for Prometheus; `GET /api/rejections`: messages of workers that the bus refused.

The middleware decides who may read the metrics. The refused messages are for the operator.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from bot.app.metrics import MetricsPage
from bot.domain.errors import UserError
from bot.web.middleware import METRICS_PATH, VISITOR

METRICS_SNAPSHOT = web.AppKey("metrics_snapshot", MetricsPage)


def routes() -> list[web.RouteDef]:
    return [web.get(METRICS_PATH, get_metrics), web.get("/api/rejections", list_rejections)]


async def get_metrics(request: web.Request) -> web.Response:
    """Return all metrics in the format that the scraper prefers."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    body = await request.app[METRICS_SNAPSHOT].render(encode)
    return web.Response(body=body, headers={"Content-Type": content_type})


async def list_rejections(request: web.Request) -> web.Response:
    """Return the workers' messages that were refused in the last minute. They may hold text of any client of the
    broker.
    """
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may see the refused messages.", 403)
    return web.json_response({"rejections": request.app[METRICS_SNAPSHOT].refused_messages()})
