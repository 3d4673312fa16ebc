"""Every old name in a request is refused with a sentence that gives the new one; answers keep their old names, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from bot.web.api.jobs import JobBody
from bot.web.renamed import OLD_KINDS, RENAMED_ANSWER_FIELDS, RENAMED_FIELDS, RENAMED_PARTS, RENAMED_PATHS

if TYPE_CHECKING:
    from tests.bot.web.conftest import WebServer

pytestmark = pytest.mark.asyncio
VALUES = {"shots": ["01ARZ3NDEKTSV4RRFFQ69G5FAV/1"], "until": 50, "mixed": True}
JOB_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.mark.parametrize(("old_name", "new_name"), RENAMED_FIELDS.items())
async def test_an_old_field_is_refused_by_its_new_name(server: WebServer, old_name: str, new_name: str) -> None:
    assert new_name in JobBody.__struct_fields__
    status, reply = await server.request_json("POST", "/api/jobs", {"prompt": "a lamp", old_name: VALUES[old_name]})
    assert (status, reply) == (400, {"error": f"Unknown field {old_name}: it is called {new_name} now."})
    assert (await server.request_json("GET", "/api/jobs"))[1]["jobs"] == []


@pytest.mark.parametrize(("old_name", "new_name"), RENAMED_PARTS.items())
async def test_an_old_form_part_is_refused_by_its_new_name(server: WebServer, old_name: str, new_name: str) -> None:
    form = aiohttp.FormData()
    form.add_field(old_name, '{"prompt": "a lamp"}', content_type="application/json")
    form.add_field("picture", b"any", filename="picture")
    headers = {"X-Darkroom": "test"}
    async with server.client.post(server.url + "/api/jobs", data=form, headers=headers) as response:
        assert response.status == 400
        assert await response.json() == {"error": f"Unknown form part {old_name}: it is called {new_name} now."}


@pytest.mark.parametrize(("old_path", "new_path"), RENAMED_PATHS.items())
async def test_an_old_address_is_refused_by_its_new_one(server: WebServer, old_path: str, new_path: str) -> None:
    old_path, new_path = (path.format(id=JOB_ID, file="1.webp") for path in (old_path, new_path))
    status, reply = await server.request_json("GET", old_path)
    assert (status, reply) == (400, {"error": f"Unknown address {old_path}: it is called {new_path} now."})


async def test_another_unknown_field_is_refused_by_its_name(server: WebServer) -> None:
    status, reply = await server.request_json("POST", "/api/jobs", {"prompt": "a lamp", "stpes": 40})
    assert status == 400
    assert "unknown field `stpes`" in reply["error"]


async def test_answers_have_renamed_fields_under_both_names(server: WebServer) -> None:
    job = await server.imagine("a lamp", count=2)
    await server.wait_for_end(job)
    _, generated = await server.request_json("GET", f"/api/jobs/{job}")
    _, accepted = await server.request_json("POST", f"/api/jobs/{job}/upscale/1")
    _, upscaled = await server.request_json("GET", f"/api/jobs/{accepted['id']}")
    _, workers = await server.request_json("GET", "/api/workers")
    for answer, kind in ((generated, "generate"), (upscaled, "upscale")):
        assert (answer["kind"], answer["task"]) == (kind, OLD_KINDS[kind])
    answers = (generated, workers, workers["workers"][0]["models"][0])
    checked = {old for old, new in RENAMED_ANSWER_FIELDS.items() for one in answers if old in one and new in one}
    assert checked == set(RENAMED_ANSWER_FIELDS)
    for old, new in (("walkable", "can_interpolate"), ("warming", "engine_loading"), ("enlargement", "upscale_factor")):
        assert all(answer[old] == answer[new] for answer in answers if old in answer)
