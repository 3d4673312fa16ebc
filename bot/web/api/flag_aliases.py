"""`/api/prefer/options`: a visitor's flag aliases, as `/prefer option` has them in Discord."""

from __future__ import annotations

import msgspec
from aiohttp import web

from bot.services.flag_aliases import FlagAliases
from bot.web.middleware import member_of
from bot.web.request_body import read_body

FLAG_ALIASES = web.AppKey("flag_aliases", FlagAliases)


class FlagAliasBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /api/prefer/options`. Without a value the alias is deleted."""

    name: str
    value: str = ""


def routes() -> list[web.RouteDef]:
    return [web.get("/api/prefer/options", list_aliases), web.put("/api/prefer/options", set_alias)]


async def list_aliases(request: web.Request) -> web.Response:
    """Return the visitor's flag aliases, and what they stand for."""
    return web.json_response({"options": await request.app[FLAG_ALIASES].list_aliases(member_of(request).id)})


async def set_alias(request: web.Request) -> web.Response:
    """Set or delete one of the visitor's flag aliases; return them all."""
    body = await read_body(request, FlagAliasBody)
    aliases = request.app[FLAG_ALIASES]
    member_id = member_of(request).id
    await (
        aliases.set_alias(member_id, body.name, body.value)
        if body.value.strip()
        else aliases.delete_alias(member_id, body.name)
    )
    return await list_aliases(request)
