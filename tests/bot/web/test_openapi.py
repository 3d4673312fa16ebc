"""The served description of the API: complete, and true of what the API answers."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from aiohttp import web

from bot.web.api import openapi
from bot.web.app import list_routes
from bot.web.routes import list_public_prefixes

if TYPE_CHECKING:
    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio
BODY_CALL = re.compile(r"read_(?:picture_)?(?:body|form)\(request, (\w+)\)")


async def load_description(server: WebServer) -> dict[str, Any]:
    status, description = await server.request_json("GET", openapi.PATH)
    assert status == 200
    return description


async def test_the_description_has_every_route(server: WebServer) -> None:
    description = await load_description(server)
    described = {(method, path) for path, item in description["paths"].items() for method in item}
    registered = {
        (route.method.lower(), route.resource.canonical)
        for route in server.app.router.routes()
        if route.method != "HEAD" and route.resource and not isinstance(route.resource, web.StaticResource)
    }
    assert described == registered
    operations = [operation for item in description["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)
    public = {path for path, item in description["paths"].items() for one in item.values() if one.get("security") == []}
    signed = {path for path in public if path.startswith(list_public_prefixes())}
    assert public - signed == {"/healthz", "/api/entrance"}
    names = set(description["components"]["schemas"])
    assert set(re.findall(r"#/components/schemas/(\w+)", str(description))) <= names


async def test_the_description_has_every_body_that_a_handler_reads(server: WebServer) -> None:
    modules = {
        inspect.getmodule(route.handler) for route in server.app.router.routes() if inspect.isfunction(route.handler)
    }
    read_names = {name for module in modules if module for name in BODY_CALL.findall(inspect.getsource(module))}
    assert "JobBody" in read_names
    bodies = [body for _, route in list_routes() for body in (route.shape.body, route.shape.json_body)]
    assert read_names == {body.__name__ for body in bodies if body is not None}


async def test_answers_are_as_described(server: WebServer) -> None:
    description = await load_description(server)

    async def check(method: str, path: str, schema: str, body: object = None) -> Any:
        status, answer = await server.request_json(method, path, body)
        assert (schema == "Error") == (status >= 400), answer
        jsonschema.validate(answer, {"$ref": f"#/components/schemas/{schema}", "components": description["components"]})
        return answer

    # 1.0 is an integer in JSON Schema, 1.5 is none
    job = (await check("POST", "/api/jobs", "Accepted", {"prompt": "a lamp", "count": 1.0}))["id"]
    await check("POST", "/api/jobs", "Error", {"prompt": "a lamp", "count": 1.5})
    await server.wait_for_end(job)
    for path, schema in {
        f"/api/jobs/{job}": "Job",
        "/api/jobs": "Jobs",
        "/api/workers": "Workers",
        "/healthz": "Health",
        f"/api/jobs/{job}/keyframes": "Keyframes",
        f"/api/jobs/{job}/branch/1": "Steps",
        "/api/rejections": "Rejections",
        "/api/jobs/none": "Error",
    }.items():
        await check("GET", path, schema)
    upscaled = (await check("POST", f"/api/jobs/{job}/upscale/1", "Accepted"))["id"]
    await server.wait_for_end(upscaled)
    await check("GET", f"/api/jobs/{upscaled}", "Job")
    await check("DELETE", f"/api/jobs/{upscaled}", "Sentence")
    await check("POST", f"/api/jobs/{job}/pan/1", "Error", {"direction": "in"})
