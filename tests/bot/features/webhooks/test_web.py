"""Webhooks from a whole bot to a real receiver: signed, tried again, replayed, and never lost with the process."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import pytest_asyncio
from aiohttp import web
from standardwebhooks import Webhook as Verifier

from bot.__main__ import app as darkroom
from bot.domain.errors import UserError
from bot.features.webhooks.service import Webhooks
from bot.features.webhooks.settings import WebhookSettings
from shared.clock import wait_until
from shared.web_server import ask, make_key, open_shared_page

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

on_shared_server = pytest.mark.asyncio(loop_scope="module")
LISTED = (WebhookSettings(hosts=("127.0.0.1",)),)


@dataclass
class Receiver:
    """An endpoint that answers with `statuses`, then with 204, and keeps what it got."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    messages: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    arrival: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self, request: web.Request) -> web.Response:
        self.messages.append((dict(request.headers), await request.read()))
        self.arrival.set()
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    async def wait_for(self, *types: str) -> list[dict[str, Any]]:
        """Waits until every type has come; returns the bodies, by their first arrival."""
        async with asyncio.timeout(30):
            while not set(types) <= {body["type"] for body in self.bodies()}:
                self.arrival.clear()
                await self.arrival.wait()
        return self.bodies()

    async def wait_for_messages(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.messages) < count:
                self.arrival.clear()
                await self.arrival.wait()

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.messages]

    def verify(self, secret: str) -> set[str]:
        """Checks every signature; returns the ids."""
        for headers, body in self.messages:
            assert Verifier(secret).verify(body, headers) == json.loads(body)
        return {headers["webhook-id"] for headers, _ in self.messages}


@asynccontextmanager
async def open_receiver(*statuses: int) -> AsyncGenerator[Receiver]:
    receiver = Receiver(statuses=list(statuses))
    app = web.Application()
    app.router.add_post("/hook", receiver.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture(scope="module", autouse=True)
def short_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bot.features.webhooks.rules.RETRY_SECONDS", (0.05,))
        patch.setattr("bot.features.webhooks.service.ROUND_SECONDS", 0.05)
        for name in ("LOOK_SECONDS", "PREVIEW_SECONDS"):
            patch.setattr(f"bot.features.webhooks.service.{name}", 0.05)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listed_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WebServer]:
    """A page whose operator lists this computer for webhooks."""
    async with open_shared_page(tmp_path_factory, features=LISTED) as server:
        yield server


@on_shared_server
async def test_a_job_is_told_from_its_start_to_its_end_with_previews(listed_server: WebServer) -> None:
    server = listed_server
    async with open_receiver() as receiver:
        events = ("queued", "started", "preview", "finished")
        webhook = await server.services.get(Webhooks).add(receiver.url, events)
        server.workers[0].step_gate.clear()
        job = await server.imagine("a lamp")
        await wait_until(lambda: server.services.feed.is_watched(job))
        server.workers[0].step_gate.set()
        bodies = await receiver.wait_for("job.queued", "job.started", "job.preview", "job.finished")
        receiver.verify(webhook.secret)
        assert {body["data"]["id"] for body in bodies} == {job}
        finished = next(body["data"] for body in bodies if body["type"] == "job.finished")
        assert [picture["n"] for picture in finished["pictures"]] == [1, 2, 3, 4]
        async with server.client.get(server.url + finished["pictures"][0]["url"]) as answer:
            assert answer.status == 200
        preview = next(body["data"] for body in bodies if body["type"] == "job.preview")
        assert base64.b64decode(preview["previews"][0]["base64"]).startswith(b"\xff\xd8")
        assert "a lamp" not in str(bodies), "the prompt stays where it may be seen"
        await server.services.get(Webhooks).remove(webhook.id)


@on_shared_server
async def test_a_failed_message_is_sent_again_then_a_dead_letter_and_replayed_under_its_id(
    listed_server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = listed_server
    async with open_receiver(500, 302) as receiver:

        async def run(*args: str) -> str:
            arguments = ["webhook", *args, "--data", str(server.settings.data)]
            await asyncio.to_thread(darkroom, arguments, standalone_mode=False)
            return capsys.readouterr().out

        webhook = await server.services.get(Webhooks).add(receiver.url, ["finished"])
        await server.imagine("a lamp")
        async with asyncio.timeout(30):
            while not (letters := await server.services.get(Webhooks).list_dead(webhook.id)):
                await asyncio.sleep(0.02)
        assert [(letter.tries, letter.error) for letter in letters] == [(2, "It answered 302.")]
        assert letters[0].job in await run("dead", webhook.id[-6:])
        assert len(receiver.messages) == 2, "a redirect is not followed"
        assert await run("replay", webhook.id) == "1 event is sent again.\n"
        await receiver.wait_for_messages(3)
        assert receiver.verify(webhook.secret) == {letters[0].id}
        assert len({body for _, body in receiver.messages}) == 1
        async with asyncio.timeout(30):
            while "0 waiting, 1 delivered, 0 dead" not in await run("list"):
                await asyncio.sleep(0.02)
        assert webhook.secret not in await run("list", "--json")
        assert await run("remove", webhook.id) == f"The webhook {webhook.id} is removed.\n"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_an_event_that_was_committed_survives_the_process(open_server: OpenServer) -> None:
    async with open_receiver(503) as receiver:
        async with open_server(features=LISTED) as server:
            webhook = await server.services.get(Webhooks).add(receiver.url, ["finished"])
            job = await server.imagine("a lamp")
            await receiver.wait_for("job.finished")
        async with open_server(features=LISTED, workers=0):
            await receiver.wait_for_messages(2)
        assert {body["data"]["id"] for body in receiver.bodies()} == {job}
        assert len(receiver.verify(webhook.secret)) == 1


@pytest.mark.slow
@on_shared_server
async def test_a_webhook_of_a_key_has_its_jobs_alone_and_ends_with_it(listed_server: WebServer) -> None:
    server = listed_server
    async with open_receiver() as receiver:
        secret = await make_key(server, "webui")
        webhook = await server.services.get(Webhooks).add(receiver.url, ["finished"], key_name="webui")
        await server.wait_for_end(await server.imagine("an owl"))
        status, text = await ask(server, "POST", "/api/jobs", f"Bearer {secret}", {"prompt": "a lamp"})
        assert status == 201
        (body,) = await receiver.wait_for("job.finished")
        assert (body["data"]["id"], body["data"]["member"]) == (json.loads(text)["id"], "local:key:webui")
        await server.services.get(Webhooks).remove(webhook.id)


@on_shared_server
async def test_a_key_with_the_scope_has_its_own_webhooks_over_http(listed_server: WebServer) -> None:
    server = listed_server
    async with open_receiver() as receiver:
        own = await make_key(server, "one", "webhooks")
        other = await make_key(server, "two", "imagine", "read")
        path = "/api/webhooks"
        wanted = {"url": receiver.url, "events": ["finished"]}
        status, text = await ask(server, "POST", path, f"Bearer {own}", wanted)
        assert status == 201, text
        made = json.loads(text)
        assert (made["key"], made["events"]) == ("one", ["job.finished"])
        assert (await ask(server, "POST", path, f"Bearer {own}", wanted | {"key": "two"}))[0] == 403
        assert await ask(server, "GET", path, f"Bearer {other}") == (
            403,
            '{"error": "This key may not have webhooks: that needs the scope webhooks."}',
        )
        status, everything = await server.request_json("POST", path, wanted | {"key": ""})
        assert status == 201, "the terminal is the operator"
        status, text = await ask(server, "GET", path, f"Bearer {own}")
        assert [webhook["id"] for webhook in json.loads(text)["webhooks"]] == [made["id"]]
        assert made["secret"] not in text
        for method, rest in (("DELETE", ""), ("GET", "/dead"), ("POST", "/replay")):
            assert (await ask(server, method, f"{path}/{everything['id']}{rest}", f"Bearer {own}"))[0] == 404
            assert (await ask(server, method, f"{path}/{made['id']}{rest}", "Bearer none"))[0] == 403, "an open room"
        assert (await ask(server, "GET", f"{path}/{made['id']}/dead", f"Bearer {own}"))[1] == '{"dead":[]}'
        assert (await ask(server, "POST", f"{path}/{made['id']}/replay", f"Bearer {own}", {"seconds": 60}))[0] == 200
        assert (await ask(server, "DELETE", f"{path}/{made['id']}", f"Bearer {own}"))[0] == 200
        assert (await ask(server, "DELETE", f"{path}/{made['id']}", f"Bearer {own}"))[0] == 404


@on_shared_server
async def test_the_command_says_that_an_older_keys_webhooks_are_off(
    listed_server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*args: str) -> str:
        arguments = ["api-key", "reborn", *args, "--data", str(listed_server.settings.data)]
        await asyncio.to_thread(darkroom, arguments, standalone_mode=False)
        return capsys.readouterr().out

    await run()
    webhooks = listed_server.services.get(Webhooks)
    webhook = await webhooks.add("https://hooks.example/", key_name="reborn")
    revoked = await run("--revoke")
    assert f"  {webhook.id}  https://hooks.example/\n" in revoked
    with pytest.raises(UserError, match="There is no valid key 'reborn'"):
        await webhooks.replay(webhook.id)
    made = await run()
    assert f"  {webhook.id}  https://hooks.example/\n" in made
    await webhooks.replay(webhook.id)
    (state,) = await webhooks.list_all("reborn")
    assert state.webhook.enabled


@on_shared_server
async def test_answers_are_as_described(listed_server: WebServer) -> None:
    _, description = await listed_server.request_json("GET", "/openapi.json")

    async def check(method: str, path: str, schema: str, body: object = None) -> Any:
        status, answer = await listed_server.request_json(method, path, body)
        assert (schema == "Error") == (status >= 400), answer
        jsonschema.validate(answer, {"$ref": f"#/components/schemas/{schema}", "components": description["components"]})
        return answer

    await check("POST", "/api/webhooks", "Error", {"url": "http://192.0.2.1/"})
    webhook = (await check("POST", "/api/webhooks", "NewWebhook", {"url": "https://hooks.example/"}))["id"]
    await check("GET", "/api/webhooks", "WebhookList")
    await check("GET", f"/api/webhooks/{webhook}/dead", "DeadLetters")
    await check("POST", f"/api/webhooks/{webhook}/replay", "WebhookSentence", {"seconds": 60})
    await check("DELETE", f"/api/webhooks/{webhook}", "WebhookSentence")
