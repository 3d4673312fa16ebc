"""Every route of the page has a row here: who may ask, and which action of the permission table it checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest

from bot.domain.dto import Destination, Member
from bot.policy.permissions import ACTIONS, forbidden_reason
from shared.feature_rows import read_feature_rows

if TYPE_CHECKING:
    from tests.bot.web.conftest import OpenServer, WebServer

pytestmark = pytest.mark.asyncio

# Who may ask: everybody, a visitor, the operator, or the terminal of this machine. The action that the answer
# depends on; "-": of no job, or only whether the visitor sees the job.
ROUTES = """
GET     /                                       visitor     -
POST    /api/entrance                           everybody   -
POST    /api/sign-out                           visitor     -
POST    /api/sign-out/everywhere                visitor     -
GET     /discord                                visitor     -
GET     /favicon.ico                            visitor     -
GET     /static                                 everybody   -
GET     /healthz                                everybody   -
GET     /metrics                                visitor     -
GET     /openapi.json                           visitor     -
GET     /api/rejections                         operator    -
GET     /api/workers                            visitor     -
GET     /api/events                             visitor     -
POST    /api/invitations                        operator    -
DELETE  /api/invitations                        operator    -
POST    /api/describe                           visitor     -
GET     /api/jobs                               visitor     -
POST    /api/jobs                               visitor     -
GET     /api/jobs/{id}                          visitor     -
DELETE  /api/jobs/{id}                          visitor     cancel
GET     /api/jobs/{id}/events                   visitor     -
GET     /api/jobs/{id}/wait-reason              terminal    -
POST    /api/jobs/{id}/pause                    visitor     pause
POST    /api/jobs/{id}/resume                   visitor     pause
POST    /api/jobs/{id}/priority                 operator    -
POST    /api/jobs/{id}/amend                    visitor     steer
GET     /api/jobs/{id}/amendments               visitor     details
POST    /api/jobs/{id}/vary/{n}                 visitor     vary
POST    /api/jobs/{id}/upscale/{n}              visitor     upscale
POST    /api/jobs/{id}/reroll                   visitor     reroll
POST    /api/jobs/{id}/finish                   visitor     finish
POST    /api/jobs/{id}/walk                     visitor     walk
POST    /api/jobs/{id}/edit/{n}                 visitor     edit
POST    /api/jobs/{id}/zoom/{n}                 visitor     zoom
POST    /api/jobs/{id}/pan/{n}                  visitor     pan
GET     /api/jobs/{id}/branch/{n}               visitor     branch
POST    /api/jobs/{id}/branch/{n}               visitor     branch
GET     /api/jobs/{id}/pictures/{n}.png         visitor     -
GET     /api/jobs/{id}/pictures/{n}/held.png    visitor     approve
POST    /api/jobs/{id}/pictures/{n}/show        visitor     approve
POST    /api/jobs/{id}/pictures/{n}/hide        visitor     deny
GET     /api/jobs/{id}/grid.png                 visitor     -
GET     /api/jobs/{id}/film.{kind}              visitor     film
GET     /api/jobs/{id}/walk.{kind}              visitor     film
GET     /api/jobs/{id}/dissolve/{n}.{kind}      visitor     film
GET     /api/jobs/{id}/round-trip/{n}.{kind}    visitor     film
GET     /api/jobs/{id}/keyframes                visitor     film
GET     /api/jobs/{id}/keyframes/{n}.webp       visitor     film
"""
UNKNOWN_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
CHECKS = ("bot.web.sse", "bot.services.job_permissions", "bot.services.jobs.job_service")
REVIEW_CHECKS = ("bot.services.moderation.picture_review", "bot.services.moderation.moderation")


class Route(NamedTuple):
    method: str
    path: str
    who: str
    action: str

    def path_of(self, job: str) -> str:
        values = {"id": job, "n": 1, "kind": "webp", "file": "1.webp", "format": "png", "model": "embedded"}
        return re.sub(r"{(\w+)}", lambda match: str(values.get(match[1], "01")), self.path)


TABLE = [Route(*row.split()) for row in [*ROUTES.strip().split("\n"), *read_feature_rows("routes")]]


async def test_every_registered_route_has_a_row(server: WebServer) -> None:
    registered = {
        (route.method, route.resource.canonical)
        for route in server.app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert sorted((route.method, route.path) for route in TABLE) == sorted(registered)
    assert {route.action for route in TABLE} <= {*ACTIONS, "-"}


async def test_only_those_who_may_ask_are_answered(open_server: OpenServer) -> None:
    """Nobody without a cookie, a guest, and the terminal ask for everything on a page that others can reach."""
    async with open_server(allowed_hosts=("other.example",)) as server:
        for route in TABLE:
            guest = {"Cookie": await server.start_session("guest")}  # a new one: some routes end it
            unknown, known = [await status_of(server, route, headers) for headers in ({}, guest)]
            assert (unknown in (401, 403)) == (route.who != "everybody"), route
            assert (known == 403) == (route.who in ("operator", "terminal")), route


async def test_every_route_of_a_job_checks_its_action(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner asks about a running job of another server, where the table forbids every action of a page's owner."""
    asked: list[str] = []

    def record(action: Any, *arguments: Any, **options: Any) -> str | None:
        asked.append(action)
        return forbidden_reason(action, *arguments, **options)

    for module in (*CHECKS, *REVIEW_CHECKS):
        monkeypatch.setattr(f"{module}.forbidden_reason", record)
    server.workers[0].step_gate.clear()
    member = Member("discord:1", "ann", "discord:2")
    (accepted,) = await server.services.jobs.imagine("a lamp", member, Destination("web"))
    owner = {"Cookie": await server.start_session("operator")}
    for route in TABLE:
        if "{id}" not in route.path:
            continue
        asked.clear()
        status = await status_of(server, route, owner, accepted.job)
        assert set(asked) == {route.action} - {"-"}, route
        assert status == 403 or not asked, route
    server.workers[0].step_gate.set()


async def status_of(server: WebServer, route: Route, headers: dict[str, str], job: str = UNKNOWN_JOB) -> int:
    """The status of a request without a body, also where the answer is a stream."""
    path = f"{route.path_of(job)}/chatroom.js" if route.path == "/static" else route.path_of(job)
    options: Any = {"headers": headers, "allow_redirects": False}
    async with aiohttp.ClientSession() as client, client.request(route.method, server.url + path, **options) as answer:
        return answer.status
