"""Every route × role × ownership: who is let in beyond the rules, and who is refused in spite of them.

The routes come from the served openapi.json, who may ask from tools/attack/route_table.py, and what a
visitor may do with whose job from `bot.policy.permissions`. A route without a rule is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bot.domain.dto import Member
from bot.policy.permissions import JobRef, forbidden_reason
from bot.web.middleware import GUILD
from tools.attack.route_table import ROUTES, UNKNOWN_JOB, Route
from tools.attack.visitors import Answer, Tally, Visitor

SIGN_OUT = "/api/sign-out"  # ends the caller's session: `forgeries` tries what is left of it
STOPPING = ("cancel", "pause")  # actions that a moderator may do with a private job without seeing it
BODIES: Mapping[str, object] = {
    "/api/jobs": {"prompt": "a lamp --count 1", "steps": 4},
    "/api/jobs/{id}/priority": {"weight": 2.0},
    "/api/jobs/{id}/amend": {"say": "blue"},
    "/api/jobs/{id}/zoom/{n}": {"factor": 1.5},
    "/api/jobs/{id}/pan/{n}": {"direction": "left"},
    "/api/jobs/{id}/branch/{n}": {"step": 2},
    "/api/prefer/options": {"name": "mine", "value": "--ar 1:1"},
    "/api/entrance": {"token": "none"},
}


@dataclass(frozen=True)
class Caller:
    """Who asks. `rank`: what the route table calls them: nobody, visitor or operator."""

    visitor: Visitor
    rank: str
    own_job: str = ""


@dataclass
class Matrix:
    """`jobs`: ownership → a finished job, as the caller without jobs of its own stands to it."""

    callers: Sequence[Caller]
    jobs: Mapping[str, str]
    tally: Tally
    table: Sequence[Route] = ROUTES
    cells: int = 0
    missing_rules: list[str] = field(default_factory=list[str])

    def compare_routes(self, description: Mapping[str, Any]) -> None:
        """Finds routes without a rule, and rules without a route."""
        served = {(method.upper(), path) for path, item in description["paths"].items() for method in item}
        known = {(route.method, route.path) for route in self.table}
        self.missing_rules += [f"{method} {path}" for method, path in sorted(served ^ known) if path != "/static"]

    async def run(self) -> None:
        for caller in self.callers:
            kept = [one for one in self.table if caller.rank == "nobody" or not one.path.startswith(SIGN_OUT)]
            await asyncio.gather(*(self._try_route(caller, route) for route in kept))

    async def _try_route(self, caller: Caller, route: Route) -> None:
        if "{id}" not in route.path:
            await self._try_cell(caller, route, "none", UNKNOWN_JOB)
            return
        unknown = await self._send(caller, route, UNKNOWN_JOB)
        for ownership, job in {**self.jobs, **({"own": caller.own_job} if caller.own_job else {})}.items():
            if ownership == "own" or job != caller.own_job:
                answer = await self._try_cell(caller, route, ownership, job)
                if self._is_hidden(caller, route, ownership) and not _is_alike(answer, unknown):
                    words = f"{answer.status} instead of {unknown.status}: {route.method} {route.path}"
                    self.tally.gained_rights.append(f"{caller.visitor.name} can tell that {ownership} exists, {words}")

    async def _try_cell(self, caller: Caller, route: Route, ownership: str, job: str) -> Answer:
        answer = await self._send(caller, route, job)
        self.cells += 1
        what = f"{caller.visitor.name}: {route.method} {route.path}, job {ownership}: {answer.status}"
        is_allowed = self._is_allowed(caller, route, ownership)
        if not is_allowed and 200 <= answer.status < 400:
            self.tally.gained_rights.append(what)
        if is_allowed and answer.status in (401, 403):
            self.tally.refused_rights.append(f"{what} {answer.body[:100]!r}")
        return answer

    async def _send(self, caller: Caller, route: Route, job: str) -> Answer:
        path = route.path_of(job) + ("/chatroom.js" if route.path == "/static" else "")
        body = BODIES.get(route.path) if route.method in ("POST", "PUT") else None
        answer = await caller.visitor.send_patiently(route.method, path, body, attempts=5)
        return replace(answer, body=answer.body.replace(job.encode(), b"JOB"))

    def _is_allowed(self, caller: Caller, route: Route, ownership: str) -> bool:
        if route.who == "everybody":
            return route.path != "/api/entrance" or caller.rank != "nobody"  # nobody has a token there
        if caller.rank == "nobody" or route.who == "terminal" or (route.who, caller.rank) == ("operator", "visitor"):
            return False
        return not self._is_hidden(caller, route, ownership) and self._permits(caller, route, ownership)

    def _is_hidden(self, caller: Caller, route: Route, ownership: str) -> bool:
        """Private jobs of others look as if they did not exist, and those of other servers to all but the owner."""
        if caller.rank == "nobody" or route.who != "visitor":
            return False
        if ownership == "private":
            return not (caller.rank == "operator" and route.action in STOPPING)
        return ownership == "elsewhere" and caller.rank != "operator"

    def _permits(self, caller: Caller, route: Route, ownership: str) -> bool:
        if route.action == "-" or ownership == "none":
            return True
        member = Member("me", "me", GUILD, is_moderator=caller.rank == "operator")
        guild = "another" if ownership == "elsewhere" else GUILD
        job = JobRef("me" if ownership == "own" else "author", "author", guild, is_private=ownership == "private")
        return forbidden_reason(route.action, member, job) is None


def _is_alike(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same. 429 says nothing about a job."""
    return 429 in (one.status, other.status) or (one.status, one.body) == (other.status, other.body)
