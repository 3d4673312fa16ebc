"""`GET /metrics`: the metrics for Prometheus; `GET /api/rejections`: messages of workers that the bus refused.

The middleware decides who may read the metrics. The refused messages are for the operator.
"""

from __future__ import annotations

import msgspec
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from bot.app.metrics import MetricsPage
from bot.domain.errors import UserError
from bot.web.middleware import METRICS_PATH, VISITOR
from bot.web.routes import Route, Shape, answer_json

METRICS_SNAPSHOT = web.AppKey("metrics_snapshot", MetricsPage)


class Rejection(msgspec.Struct, frozen=True):
    """A sender's messages that were refused: why, and how many."""

    sender: str
    reason: str
    count: int


class Rejections(msgspec.Struct, frozen=True):
    """The messages that were refused in the last minute."""

    rejections: list[Rejection]


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
    return answer_json(msgspec.convert({"rejections": request.app[METRICS_SNAPSHOT].refused_messages()}, Rejections))


TITLE = "Operation"
ROUTES = (
    Route("GET", METRICS_PATH, get_metrics, "list", Shape(content=("text/plain",))),
    Route("GET", "/api/rejections", list_rejections, "list", Shape(Rejections)),
)
