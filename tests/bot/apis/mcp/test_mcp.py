"""`darkroom mcp`, asked by the SDK's own client over both transports."""

from __future__ import annotations

import asyncio
import base64
import io

import pytest
from httpx2 import ASGITransport, AsyncClient
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated
from mcp_types import (
    BlobResourceContents,
    EmptyResult,
    ImageContent,
    ResourceLink,
    ResourceUpdatedNotification,
    SubscribeRequest,
    SubscribeRequestParams,
    TextContent,
)
from PIL import Image

from bot.apis.mcp import cli as command
from bot.apis.mcp.access import DarkroomAccess
from bot.apis.mcp.pictures import read_upload
from bot.apis.mcp.server import TOOLS, build_server
from bot.apis.mcp.transports import build_http_app
from bot.cli.imagine import http_client
from bot.domain.errors import UserError
from bot.services.api_keys import ApiKeys
from bot.web.auth import HostPolicy
from bot.web.middleware import INVALID_KEY
from shared.running_darkroom import Darkroom
from tests.bot.apis.mcp.mcp_clients import open_http, open_stdio

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_assistant_draws_over_stdio(darkroom: Darkroom) -> None:
    reports: list[tuple[float, str]] = []

    async def note_progress(progress: float, total: float | None, message: str | None) -> None:
        reports.append((progress, message or ""))
        if "preview at" in reports[-1][1]:
            darkroom.go_on()

    darkroom.worker.pause_step = 4  # until a preview is reported
    async with open_stdio(darkroom, "legacy") as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == list(TOOLS)
        result = await client.call_tool("imagine", {"prompt": "a lamp", "count": 2}, progress_callback=note_progress)
        assert not result.is_error, result.content
        (job,) = result.structured_content["jobs"]
        assert job["state"] == "finished"
        assert len(job["pictures"]) == 2
        links = [block for block in result.content if isinstance(block, ResourceLink)]
        copies = [block for block in result.content if isinstance(block, ImageContent)]
        assert [link.uri for link in links] == [picture["uri"] for picture in job["pictures"]]
        assert Image.open(io.BytesIO(base64.b64decode(copies[0].data))).format == "JPEG"
        (contents,) = (await client.read_resource(links[1].uri)).contents
        assert isinstance(contents, BlobResourceContents)
        assert Image.open(io.BytesIO(base64.b64decode(contents.blob))).format == "PNG"
    values = [value for value, _ in reports]
    assert values == sorted(set(values))
    assert any(f"darkroom://jobs/{job['job']}/previews/1" in message for _, message in reports)


async def test_a_caller_over_http_draws_with_its_own_key(darkroom: Darkroom, http_address: str) -> None:
    async with open_http(http_address, darkroom.key) as client:
        result = await client.call_tool("imagine", {"prompt": "a sun", "count": 1})
        (job,) = result.structured_content["jobs"]
        varied = await client.call_tool("vary", {"job": job["job"], "picture": 1})
        assert varied.structured_content["jobs"][0]["state"] == "finished"
        upscaled = await client.call_tool("upscale", {"job": job["job"]})
        assert upscaled.structured_content["jobs"][0]["pictures"][0]["width"] > job["pictures"][0]["width"]
        edited = await client.call_tool("edit", {"picture": f"{job['job']}/1", "prompt": "a moon", "strength": 0.5})
        assert edited.structured_content["jobs"][0]["state"] == "finished"
        own_uris = {resource.uri for resource in (await client.list_resources()).resources}
        assert job["pictures"][0]["uri"] in own_uris
    async with open_http(http_address, mode="legacy") as stranger:
        uris = {resource.uri for resource in (await stranger.list_resources()).resources}
        assert uris == {"darkroom://queue"}
        drawn = await stranger.call_tool("imagine", {"prompt": "a cup", "count": 1})
        assert drawn.structured_content["jobs"][0]["is_yours"]


async def test_an_api_key_acts_within_its_scopes(darkroom: Darkroom, http_address: str) -> None:
    keys = darkroom.services.get(ApiKeys)
    secret = await keys.add(await keys.prepare("viewer", ["read"]))
    async with open_http(http_address, secret) as viewer:
        assert not (await viewer.call_tool("queue", {})).is_error
        refused = await viewer.call_tool("imagine", {"prompt": "a lamp", "count": 1})
        assert refused.is_error
        assert "needs the scope imagine" in str(refused.content)
    await keys.revoke("viewer")
    painter = await keys.add(await keys.prepare("painter", ["imagine"]))
    async with open_http(http_address, painter) as client:
        refused = await client.call_tool("imagine", {"prompt": "a lamp", "count": 1})
        assert "needs the scope read" in str(refused.content)  # the picture is drawn, and not shown
    async with open_http(http_address, secret) as viewer:
        refused = await viewer.call_tool("queue", {})
        assert refused.is_error
        assert INVALID_KEY in str(refused.content)


async def test_mistakes_and_refusals_are_sentences_that_the_assistant_reads(
    darkroom: Darkroom, http_address: str
) -> None:
    async with open_http(http_address, darkroom.key) as client:
        for name, arguments, sentence in (
            ("imagine", {"prompt": ""}, "The prompt is empty"),
            (
                "imagine",
                {"prompt": "a lamp", "count": 9},
                "count is not valid: input should be less than or equal to 4.",
            ),
            ("imagine", {"prompt": "a lamp", "size": 9}, "size is not valid: extra inputs are not permitted."),
            ("imagine", {"prompt": "impossible"}, "The numbers went out of bounds"),
            ("edit", {"prompt": "a lamp", "picture": __file__}, "A picture is a finished one as JOB/2"),
            (
                "edit",
                {"prompt": "a lamp", "picture": "data:image/png;base64,!"},
                "A picture is a finished one as JOB/2",
            ),
            ("edit", {"prompt": "a lamp", "picture": f"{'0' * 26}/1"}, "no such job"),
            ("describe", {"picture": "data:image/png;base64,AAAA"}, ""),
        ):
            result = await client.call_tool(name, arguments)
            (block,) = result.content
            assert result.is_error
            assert isinstance(block, TextContent)
            assert sentence.lower() in block.text.lower(), block.text
        for uri in ("darkroom://jobs/none", f"darkroom://jobs/{'0' * 26}/pictures/1", "file:///etc/passwd"):
            with pytest.raises(MCPError):
                await client.read_resource(uri)
        with pytest.raises(MCPError, match="There is no tool"):
            await client.call_tool("draw", {})


@pytest.mark.parametrize("text", ["iVBOR" * 1000, "~nobody-has-this-name/a.png", "a\0.png", "data:image/png;base64,é"])
async def test_a_picture_that_cannot_be_read_gets_the_sentence(text: str) -> None:
    with pytest.raises(UserError, match="A picture is a finished one as JOB/2"):
        await read_upload(text, reads_files=True)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_who_subscribes_to_a_preview_sees_it_and_a_cancelled_call_ends_its_job(
    darkroom: Darkroom, http_address: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(darkroom.worker, "speed", 0.02)  # the job ends only because it is cancelled
    darkroom.worker.pause_step = 4
    updated = asyncio.Event()
    uris = asyncio.Queue[str]()

    async def note_message(message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            updated.set()

    async def note_progress(progress: float, total: float | None, message: str | None) -> None:
        if message and "preview at " in message:
            uris.put_nowait(message.rpartition("preview at ")[2])

    async def wait_for_update(client: Client, uri: str) -> None:
        if mode == "legacy":
            request = SubscribeRequest(params=SubscribeRequestParams(uri=uri))
            await client.session.send_request(request, EmptyResult)  # the client's own method warns of its age
            darkroom.go_on()
            await updated.wait()
            return
        async with client.listen(resource_subscriptions=[uri]) as events:
            darkroom.go_on()
            assert await anext(aiter(events)) == ResourceUpdated(uri=uri)

    async with asyncio.timeout(30), open_http(http_address, darkroom.key, mode, note_message) as client:
        call = asyncio.create_task(
            client.call_tool(
                "imagine", {"prompt": "a bell", "steps": 1000, "count": 1}, progress_callback=note_progress
            )
        )
        uri = await uris.get()
        await wait_for_update(client, uri)
        (contents,) = (await client.read_resource(uri)).contents
        assert contents.mime_type == "image/jpeg"
        job = uri.split("/")[3]
        shown = await client.call_tool("job", {"job": job})
        assert shown.structured_content["state"] == "running"
        assert isinstance(shown.content[1], ImageContent)
        queue = await client.call_tool("queue", {})
        assert [one["job"] for one in queue.structured_content["jobs"]] == [job]
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        state = "running"
        while state == "running":
            state = (await client.call_tool("job", {"job": job, "preview": False})).structured_content["state"]
        assert state == "cancelled"


async def test_a_job_is_followed_and_cancelled_by_its_id(darkroom: Darkroom, http_address: str) -> None:
    darkroom.worker.pause_step = 2
    async with open_http(http_address, darkroom.key) as client:
        result = await client.call_tool("imagine", {"prompt": "a {bell,drum}", "count": 1, "wait": False})
        jobs = [job["job"] for job in result.structured_content["jobs"]]
        assert len(jobs) == 2
        for job in jobs:
            assert "ancel" in (await client.call_tool("cancel", {"job": job})).structured_content["sentence"]
    darkroom.go_on()


async def test_a_server_that_others_can_reach_needs_keys_and_opens_no_open_chatroom(darkroom: Darkroom) -> None:
    access = DarkroomAccess(darkroom.data, is_shared=True, is_relayed=True)
    server = await asyncio.to_thread(build_server, access)
    app = build_http_app(server, HostPolicy.from_settings("0.0.0.0", "", ["far.example"]))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://far.example") as client:
        answer = await client.post("/mcp", json={})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert (await client.post("/mcp", json={}, headers=headers)).status_code == 403
    async with await access.open_session("Bearer made-up") as session:
        with pytest.raises(UserError, match="behind a proxy"):
            await http_client.send_request(session, "GET", "/api/jobs")


async def test_the_terminals_key_stays_on_this_machine(darkroom: Darkroom) -> None:
    async with await DarkroomAccess(darkroom.data, url="http://far.example").open_session("") as session:
        assert "Authorization" not in session.headers
    async with await DarkroomAccess(darkroom.data).open_session("Bearer another") as session:
        assert session.headers["Authorization"] == f"Bearer {darkroom.key}"
    with pytest.raises(UserError, match="No Darkroom is running"):
        await DarkroomAccess(darkroom.data / "none").open_session("")


async def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--url begins with"):
        command.mcp(url="pictures.example")

    def find_nothing(name: str) -> None:
        return None

    monkeypatch.setattr(command, "find_spec", find_nothing)
    with pytest.raises(UserError, match=r"pip install 'darkroom-bot\[mcp\]'"):
        command.mcp()
