"""Over HTTP, private jobs of others and deleted pictures look as if they did not exist."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from rich.console import Console

from bot.cli.imagine import http_client
from bot.cli.imagine.job_inputs import ApiRequest
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.imagine.result import GenerationError
from bot.domain.dto import Destination
from bot.domain.texts import PICTURES_DELETED
from bot.policy.permissions import OTHER_GUILD, PRIVATE_JOB
from bot.services.job_permissions import ORIGINAL_FORBIDDEN
from bot.services.jobs.job_service import Member
from shared.painter import stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bot.web.conftest import Room

pytestmark = pytest.mark.asyncio

AUTHOR = Member("local:terminal", "Terminal", "local")


def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


async def page_events(browser: aiohttp.ClientSession, room: Room) -> AsyncIterator[tuple[str, Any]]:
    """The events that a page in this browser receives."""
    async with browser.get(f"{room.url}/api/events") as answer:
        name = ""
        async for raw in answer.content:
            key, _, value = raw.decode().rstrip("\r\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)


async def test_only_its_author_sees_a_private_job(room: Room) -> None:
    await room.desk.preferences.set_preference(AUTHOR.id, "results", "private")
    room.drawers[0].going.clear()
    job = await room.imagine("a secret lamp")
    async with open_session() as other:
        async with other.get(room.url):  # gets a cookie
            pass
        events: list[tuple[str, Any]] = []
        watching = asyncio.create_task(collect_events(other, room, events))
        for path in ("", "/events", "/grid.png", "/film.webp", "/keyframes", "/keyframes/0.webp", "/pictures/1.png"):
            async with other.get(f"{room.url}/api/jobs/{job}{path}") as answer:
                assert (answer.status, (await answer.json())["error"]) == (404, "There is no such job."), path
        for path in ("vary/1", "upscale/1", "reroll"):
            async with other.post(f"{room.url}/api/jobs/{job}/{path}") as answer:
                assert answer.status == 404, path
        async with other.get(f"{room.url}/api/jobs") as answer:
            assert (await answer.json())["jobs"] == []
        _, mine = await room.ask("GET", "/api/jobs")
        assert [one["id"] for one in mine["jobs"]] == [job]
        room.drawers[0].going.set()
        assert (await room.end_of(job))["state"] == "finished"
        await room.desk.preferences.set_preference(AUTHOR.id, "results", "public")
        public = await room.imagine("a public lamp")
        async with asyncio.timeout(20):
            while not any(value.get("id") == public and value.get("state") == "finished" for _, value in events):
                await asyncio.sleep(0.05)
        await stop(watching)
        assert job not in json.dumps(events)
        assert "secret" not in json.dumps(events)


async def collect_events(browser: aiohttp.ClientSession, room: Room, events: list[tuple[str, Any]]) -> None:
    async for event in page_events(browser, room):
        events.append(event)


async def test_the_operator_may_cancel_a_private_job_without_seeing_it(room: Room) -> None:
    await room.desk.preferences.set_preference(AUTHOR.id, "results", "private")
    room.drawers[0].going.clear()
    job = await room.imagine("a secret lamp")
    async with open_session() as owner:  # on this computer everyone is one
        async with owner.get(room.url):
            pass
        async with owner.delete(f"{room.url}/api/jobs/{job}") as answer:
            assert answer.status == 200
            assert "secret" not in await answer.text()
    room.drawers[0].going.set()
    assert (await room.end_of(job))["state"] == "cancelled"


async def test_a_job_of_another_server_cannot_be_used_by_its_id(room: Room) -> None:
    elsewhere = Member("discord:1", "ann", "discord:2")
    (ticket,) = await room.desk.jobs.imagine("a lamp", elsewhere, Destination("web"))
    async with asyncio.timeout(20):
        while (await room.desk.job_views.load_view(ticket.job)).state != "finished":
            await asyncio.sleep(0.05)
    for method, path in (
        ("POST", "vary/1"), ("POST", "upscale/1"), ("POST", "reroll"), ("GET", "film.webp"), ("GET", "keyframes"),
        ("GET", "keyframes/0.webp"),
    ):  # fmt: skip
        status, reply = await room.ask(method, f"/api/jobs/{ticket.job}/{path}")
        assert (status, reply["error"]) == (403, OTHER_GUILD), path
    assert (await room.ask("GET", f"/api/jobs/{ticket.job}"))[0] == 200, "the operator may look"


async def test_deleted_pictures_are_gone_from_the_page_and_the_api(room: Room) -> None:
    job = await room.imagine("a lamp")
    await room.end_of(job)
    async with room.client.get(f"{room.url}/api/jobs/{job}/grid.png") as answer:
        assert answer.status == 200, "the grid is cached from now on"
    events: list[tuple[str, Any]] = []
    watching = asyncio.create_task(collect_events(room.client, room, events))
    async with asyncio.timeout(10):
        while "jobs" not in [name for name, _ in events]:
            await asyncio.sleep(0.02)
    await room.desk.moderation.delete_pictures(job, AUTHOR)
    for path in ("", "/events", "/grid.png", "/film.webp", "/keyframes", "/keyframes/0.webp", "/pictures/1.png"):
        async with room.client.get(f"{room.url}/api/jobs/{job}{path}") as answer:
            assert (answer.status, (await answer.json())["error"]) == (404, PICTURES_DELETED), path
    for path in ("vary/1", "upscale/1", "reroll"):
        status, reply = await room.ask("POST", f"/api/jobs/{job}/{path}")
        assert (status, reply["error"]) == (404, PICTURES_DELETED), path
    assert (await room.ask("GET", "/api/jobs"))[1]["jobs"] == []
    async with asyncio.timeout(10):
        while ("gone", {"id": job, "reason": PICTURES_DELETED}) not in events:
            await asyncio.sleep(0.02)
    await stop(watching)


async def test_the_stream_of_a_job_deleted_while_it_runs_ends_and_says_so(room: Room) -> None:
    room.drawers[0].speed = 0.1
    job = await room.imagine("a lamp")
    received: list[tuple[str, Any]] = []
    async for event in room.events(f"/api/jobs/{job}/events"):
        received.append(event)
        if event[0] == "frame" and len(received) < 4:
            await room.desk.moderation.delete_pictures(job, AUTHOR)
    assert received[-1] == ("deleted", {"id": job, "state": "deleted", "reason": PICTURES_DELETED})


async def test_the_terminal_says_that_its_job_was_deleted(room: Room) -> None:
    room.drawers[0].going.clear()

    async def delete_it() -> None:
        while not (queue := await room.desk.job_views.load_queue("local")):
            await asyncio.sleep(0.02)
        await room.desk.moderation.delete_pictures(queue[0].id, Member("local:mod", "Mo", "local", is_moderator=True))
        room.drawers[0].going.set()

    deleting = asyncio.create_task(delete_it())
    with ProgressDisplay(Console(quiet=True), 1) as screen, pytest.raises(GenerationError, match=PICTURES_DELETED):
        await http_client.generate(
            room.url, "", ApiRequest("/api/jobs", {"prompt": "a lamp"}), film=False, display=screen
        )
    await deleting


async def test_a_public_upscale_does_not_open_its_private_original(room: Room) -> None:
    await room.desk.preferences.set_preference(AUTHOR.id, "results", "private")
    job = (await room.end_of(await room.imagine("a secret lamp", count=1)))["id"]
    await room.desk.preferences.set_preference(AUTHOR.id, "results", "public")
    _, reply = await room.ask("POST", f"/api/jobs/{job}/upscale/1")
    upscaled = (await room.end_of(reply["id"]))["id"]
    requests: dict[str, Any] = {"zoom": {"factor": 2}, "pan": {"direction": "up"}, "branch": {"step": 12}, "vary": {}}
    async with open_session() as other:
        async with other.get(room.url):
            pass
        async with other.get(f"{room.url}/api/jobs/{upscaled}/pictures/1.png") as answer:
            assert answer.status == 200, "the upscale is public"
        async with other.get(f"{room.url}/api/jobs/{upscaled}/branch/1") as answer:
            assert (answer.status, (await answer.json())["error"]) == (403, ORIGINAL_FORBIDDEN.format(PRIVATE_JOB))
        for verb, body in requests.items():
            async with other.post(f"{room.url}/api/jobs/{upscaled}/{verb}/1", json=body) as answer:
                assert (answer.status, (await answer.json())["error"]) == (
                    403,
                    ORIGINAL_FORBIDDEN.format(PRIVATE_JOB),
                ), verb
    status, reply = await room.ask("GET", f"/api/jobs/{upscaled}/branch/1")
    assert (status, bool(reply["steps"])) == (200, True)
