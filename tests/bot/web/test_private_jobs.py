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
from bot.jobs.drawing import Member
from bot.jobs.views import ORIGINAL_FORBIDDEN
from bot.policy.permissions import OTHER_GUILD, PRIVATE_JOB
from shared.web_server import open_session
from tools.painter import cancel_task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio

AUTHOR = Member("local:terminal", "Terminal", "local")


async def page_events(browser: aiohttp.ClientSession, server: WebServer) -> AsyncIterator[tuple[str, Any]]:
    """Yields the events that a page in this browser receives."""
    async with browser.get(f"{server.url}/api/events") as answer:
        name = ""
        async for raw in answer.content:
            key, _, value = raw.decode().rstrip("\r\n").partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                yield name, json.loads(value)


async def test_only_its_author_sees_a_private_job(server: WebServer) -> None:
    await server.services.preferences.set_preference(AUTHOR.id, "results", "private")
    server.workers[0].step_gate.clear()
    job = await server.imagine("a secret lamp")
    async with open_session() as other:
        async with other.get(server.url):  # gets a cookie
            pass
        events: list[tuple[str, Any]] = []
        watch_task = asyncio.create_task(collect_events(other, server, events))
        for path in ("", "/events", "/grid.png", "/film.webp", "/keyframes", "/keyframes/0.webp", "/pictures/1.png"):
            async with other.get(f"{server.url}/api/jobs/{job}{path}") as answer:
                assert (answer.status, (await answer.json())["error"]) == (404, "There is no such job."), path
        for path in ("vary/1", "upscale/1", "reroll"):
            async with other.post(f"{server.url}/api/jobs/{job}/{path}") as answer:
                assert answer.status == 404, path
        async with other.get(f"{server.url}/api/jobs") as answer:
            assert (await answer.json())["jobs"] == []
        _, own_jobs = await server.request_json("GET", "/api/jobs")
        assert [one["id"] for one in own_jobs["jobs"]] == [job]
        server.workers[0].step_gate.set()
        assert (await server.wait_for_end(job))["state"] == "finished"
        await server.services.preferences.set_preference(AUTHOR.id, "results", "public")
        public_job = await server.imagine("a public lamp")
        async with asyncio.timeout(20):
            while not any(value.get("id") == public_job and value.get("state") == "finished" for _, value in events):
                await asyncio.sleep(0.05)
        await cancel_task(watch_task)
        assert job not in json.dumps(events)
        assert "secret" not in json.dumps(events)


async def collect_events(browser: aiohttp.ClientSession, server: WebServer, events: list[tuple[str, Any]]) -> None:
    async for event in page_events(browser, server):
        events.append(event)


async def test_others_do_not_learn_the_id_of_a_private_job_that_is_deleted(server: WebServer) -> None:
    await server.services.preferences.set_preference(AUTHOR.id, "results", "private")
    seen_job, unseen_job = [(await server.wait_for_end(await server.imagine("a secret lamp")))["id"] for _ in range(2)]
    server.workers[0].step_gate.clear()
    running_job = await server.imagine("a secret lamp")
    (job_elsewhere,) = await server.services.jobs.imagine(
        "a lamp", Member("discord:1", "ann", "discord:2"), Destination("web")
    )
    await server.services.preferences.set_preference(AUTHOR.id, "results", "public")
    public_job = await server.imagine("a public lamp")
    author_events = list[tuple[str, Any]]()
    other_events = list[tuple[str, Any]]()
    async with open_session() as other:
        async with other.get(server.url):
            pass
        watch_tasks = [
            asyncio.create_task(collect_events(server.client, server, author_events)),
            asyncio.create_task(collect_events(other, server, other_events)),
        ]
        async with asyncio.timeout(10):
            while not all("jobs" in [name for name, _ in events] for events in (author_events, other_events)):
                await asyncio.sleep(0.02)
        for job in (seen_job, seen_job, unseen_job, running_job, public_job):
            await server.services.moderation.delete_pictures(job, AUTHOR)
        await server.services.moderation.delete_pictures(job_elsewhere.job, Member("discord:1", "ann", "discord:2"))
        server.workers[0].step_gate.set()
        last_job = await server.imagine("a last lamp")
        async with asyncio.timeout(20):
            while not all(
                any(value.get("id") == last_job and value.get("state") == "finished" for _, value in events)
                for events in (author_events, other_events)
            ):
                await asyncio.sleep(0.05)
        for task in watch_tasks:
            await cancel_task(task)
    secret_jobs = (seen_job, unseen_job, running_job, job_elsewhere.job)
    assert [job for job in secret_jobs if job in json.dumps(other_events)] == []
    gone_jobs = [{value["id"] for name, value in events if name == "gone"} for events in (author_events, other_events)]
    assert gone_jobs == [{seen_job, unseen_job, running_job, public_job}, {public_job}]


async def test_the_operator_may_cancel_a_private_job_without_seeing_it(server: WebServer) -> None:
    await server.services.preferences.set_preference(AUTHOR.id, "results", "private")
    server.workers[0].step_gate.clear()
    job = await server.imagine("a secret lamp")
    headers = {"Cookie": await server.start_session("operator")}
    async with server.client.delete(f"{server.url}/api/jobs/{job}", headers=headers) as answer:
        assert answer.status == 200
        assert "secret" not in await answer.text()
    server.workers[0].step_gate.set()
    assert (await server.wait_for_end(job))["state"] == "cancelled"


async def test_a_job_of_another_server_cannot_be_used_by_its_id(server: WebServer) -> None:
    member_elsewhere = Member("discord:1", "ann", "discord:2")
    (accepted,) = await server.services.jobs.imagine("a lamp", member_elsewhere, Destination("web"))
    async with asyncio.timeout(20):
        while (await server.services.job_views.load_view(accepted.job)).state != "finished":
            await asyncio.sleep(0.05)
    for method, path in (
        ("POST", "vary/1"),
        ("POST", "upscale/1"),
        ("POST", "reroll"),
        ("GET", "film.webp"),
        ("GET", "keyframes"),
        ("GET", "keyframes/0.webp"),
    ):
        status, reply = await server.request_json(method, f"/api/jobs/{accepted.job}/{path}")
        assert (status, reply["error"]) == (403, OTHER_GUILD), path
    assert (await server.request_json("GET", f"/api/jobs/{accepted.job}"))[0] == 200, "the operator may look"


async def test_deleted_pictures_are_gone_from_the_page_and_the_api(server: WebServer) -> None:
    job = await server.imagine("a lamp")
    await server.wait_for_end(job)
    async with server.client.get(f"{server.url}/api/jobs/{job}/grid.png") as answer:
        assert answer.status == 200, "the grid is cached from now on"
    events: list[tuple[str, Any]] = []
    watch_task = asyncio.create_task(collect_events(server.client, server, events))
    async with asyncio.timeout(10):
        while "jobs" not in [name for name, _ in events]:
            await asyncio.sleep(0.02)
    await server.services.moderation.delete_pictures(job, AUTHOR)
    for path in ("", "/events", "/grid.png", "/film.webp", "/keyframes", "/keyframes/0.webp", "/pictures/1.png"):
        async with server.client.get(f"{server.url}/api/jobs/{job}{path}") as answer:
            assert (answer.status, (await answer.json())["error"]) == (404, PICTURES_DELETED), path
    for path in ("vary/1", "upscale/1", "reroll"):
        status, reply = await server.request_json("POST", f"/api/jobs/{job}/{path}")
        assert (status, reply["error"]) == (404, PICTURES_DELETED), path
    assert (await server.request_json("GET", "/api/jobs"))[1]["jobs"] == []
    async with asyncio.timeout(10):
        while ("gone", {"id": job, "reason": PICTURES_DELETED}) not in events:
            await asyncio.sleep(0.02)
    await cancel_task(watch_task)


async def test_the_stream_of_a_job_deleted_while_it_runs_ends_and_says_so(server: WebServer) -> None:
    server.workers[0].speed = 0.1
    job = await server.imagine("a lamp")
    received_events: list[tuple[str, Any]] = []
    async for event in server.events(f"/api/jobs/{job}/events"):
        received_events.append(event)
        if event[0] == "frame" and len(received_events) < 4:
            await server.services.moderation.delete_pictures(job, AUTHOR)
    assert received_events[-1] == ("deleted", {"id": job, "state": "deleted", "reason": PICTURES_DELETED})


async def test_the_terminal_says_that_its_job_was_deleted(server: WebServer) -> None:
    server.workers[0].step_gate.clear()

    async def delete_it() -> None:
        while not (queue := await server.services.job_views.load_queue("local")):
            await asyncio.sleep(0.02)
        await server.services.moderation.delete_pictures(
            queue[0].id, Member("local:mod", "Mo", "local", is_moderator=True)
        )
        server.workers[0].step_gate.set()

    delete_task = asyncio.create_task(delete_it())
    with ProgressDisplay(Console(quiet=True), 1) as screen, pytest.raises(GenerationError, match=PICTURES_DELETED):
        await http_client.generate(
            server.url, "", ApiRequest("/api/jobs", {"prompt": "a lamp"}), film=False, display=screen
        )
    await delete_task


async def test_a_public_upscale_does_not_open_its_private_original(server: WebServer) -> None:
    await server.services.preferences.set_preference(AUTHOR.id, "results", "private")
    job = (await server.wait_for_end(await server.imagine("a secret lamp", count=1)))["id"]
    await server.services.preferences.set_preference(AUTHOR.id, "results", "public")
    _, reply = await server.request_json("POST", f"/api/jobs/{job}/upscale/1")
    upscaled_job = (await server.wait_for_end(reply["id"]))["id"]
    requests: dict[str, Any] = {"zoom": {"factor": 2}, "pan": {"direction": "up"}, "branch": {"step": 12}, "vary": {}}
    async with open_session() as other:
        async with other.get(server.url):
            pass
        async with other.get(f"{server.url}/api/jobs/{upscaled_job}/pictures/1.png") as answer:
            assert answer.status == 200, "the upscale is public"
        async with other.get(f"{server.url}/api/jobs/{upscaled_job}/branch/1") as answer:
            assert (answer.status, (await answer.json())["error"]) == (403, ORIGINAL_FORBIDDEN.format(PRIVATE_JOB))
        for verb, body in requests.items():
            async with other.post(f"{server.url}/api/jobs/{upscaled_job}/{verb}/1", json=body) as answer:
                assert (answer.status, (await answer.json())["error"]) == (
                    403,
                    ORIGINAL_FORBIDDEN.format(PRIVATE_JOB),
                ), verb
    status, reply = await server.request_json("GET", f"/api/jobs/{upscaled_job}/branch/1")
    assert (status, bool(reply["steps"])) == (200, True)


async def test_the_operator_sees_no_job_of_a_private_thread_on_the_page(server: WebServer) -> None:
    member_in_thread = Member("discord:1", "ann", "discord:2", channel="30", thread="77")
    (accepted,) = await server.services.jobs.imagine("a lamp", member_in_thread, Destination("web"))
    async with asyncio.timeout(20):
        while (await server.services.job_views.load_view(accepted.job)).state != "finished":
            await asyncio.sleep(0.05)
    for path in ("", "/events", "/grid.png", "/film.webp", "/keyframes", "/pictures/1.png"):
        status, reply = await server.request_json("GET", f"/api/jobs/{accepted.job}{path}")
        assert (status, reply["error"]) == (404, "There is no such job."), path
