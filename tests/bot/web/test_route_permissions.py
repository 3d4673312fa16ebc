"""Every route of the page has a row in `routes.txt`: who may ask, and which action it checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from bot.domain.dto import Destination, Member
from bot.policy.permissions import ACTIONS, forbidden_reason
from tools.attack.route_table import ROUTES, UNKNOWN_JOB, Route

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio

CHECKS = ("bot.web.sse", "bot.jobs.views", "bot.jobs.control")
REVIEW_CHECKS = ("bot.services.moderation.picture_review", "bot.services.moderation.moderation")


async def test_every_registered_route_has_a_row(server: WebServer) -> None:
    registered = {
        (route.method, route.resource.canonical)
        for route in server.app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert sorted((route.method, route.path) for route in ROUTES) == sorted(registered)
    assert {route.action for route in ROUTES} <= {*ACTIONS, "-"}


async def test_only_those_who_may_ask_are_answered(open_server: OpenServer) -> None:
    """Nobody without a cookie, a guest, and the terminal ask for everything on a page that others can reach."""
    async with open_server(allowed_hosts=("other.example",)) as server:
        for route in ROUTES:
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
    for route in ROUTES:
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
