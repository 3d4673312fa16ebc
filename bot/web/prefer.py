"""`/api/prefer/options`: a visitor's flag aliases, as `/prefer option` has them in Discord."""

from __future__ import annotations

import msgspec
from aiohttp import web

from bot.desk.options import Options
from bot.web.body import body_of
from bot.web.door import member_of

OPTIONS = web.AppKey("options", Options)


class Option(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /api/prefer/options`. Without a value the alias is deleted."""

    name: str
    value: str = ""


def routes() -> list[web.RouteDef]:
    return [web.get("/api/prefer/options", mine), web.put("/api/prefer/options", note)]


async def mine(request: web.Request) -> web.Response:
    """Return the visitor's flag aliases, and what they stand for."""
    return web.json_response({"options": await request.app[OPTIONS].of(member_of(request).id)})


async def note(request: web.Request) -> web.Response:
    """Set or delete one of the visitor's flag aliases; return them all."""
    said, options, member = await body_of(request, Option), request.app[OPTIONS], member_of(request).id
    await (options.put(member, said.name, said.value) if said.value.strip() else options.drop(member, said.name))
    return await mine(request)
