"""`/api/prefer/options`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jsonschema
import pytest

if TYPE_CHECKING:
    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio


async def test_a_visitor_defines_flag_aliases_and_uses_them(server: WebServer) -> None:
    path = "/api/prefer/options"
    assert await server.request_json("GET", path) == (200, {"options": {}})
    aliases = {"mine": "pale --seed 5 --count 1"}
    assert await server.request_json("PUT", path, {"name": "--Mine", "value": aliases["mine"]}) == (
        200,
        {"options": aliases},
    )
    job = await server.wait_for_end(await server.imagine("red apple --mine"))
    assert (job["prompt"], job["seed"]) == ("red apple pale --seed 5 --count 1", 5)
    status, reply = await server.request_json("PUT", path, {"name": "other", "value": "--steps 9999"})
    assert (status, reply["error"]) == (422, "--steps 9999 is not possible: it takes 1 to 1000.")
    assert (await server.request_json("PUT", path, {"name": "mine", "values": ""}))[0] == 400
    assert await server.request_json("PUT", path, {"name": "mine"}) == (200, {"options": {}})
    assert (await server.request_json("PUT", path, {"name": "mine"}))[0] == 404


async def test_the_answers_are_as_described(server: WebServer) -> None:
    async with server.client.get(f"{server.url}/openapi.json") as answer:
        components = (await answer.json())["components"]
    for method, body in (("GET", None), ("PUT", {"name": "mine", "value": "--ar 3:2"})):
        status, aliases = await server.request_json(method, "/api/prefer/options", body)
        assert status == 200
        jsonschema.validate(aliases, {"$ref": "#/components/schemas/FlagAliases", "components": components})
