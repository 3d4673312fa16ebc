"""The HTTP API over a real house: a job asked for, followed, fetched, varied, enlarged, cancelled."""

from __future__ import annotations

import asyncio
import io
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from rich.console import Console

from bot.cli import remote
from bot.cli.bringing import Asked
from bot.cli.screen import Screen
from bot.web.live import WARMING
from engine.bus import Bus
from engine.job import ModelProgress

if TYPE_CHECKING:
    from engine.bus.broker import Broker
    from tests.web.conftest import OpenRoom, Room


async def test_healthz_says_ok(room: Room) -> None:
    status, said = await room.ask("GET", "/healthz")
    assert (status, said["status"], said["workers"]) == (200, "ok", 1)


async def test_the_room_names_its_workers_models_and_device(room: Room) -> None:
    status, said = await room.ask("GET", "/api/room")
    assert status == 200
    assert said["online"]
    assert said["models"] == ["embedded"]
    assert said["workers"][0]["device"] == "paper and ink"


async def test_an_engine_that_is_on_its_way_is_said(open_room: OpenRoom) -> None:
    async with open_room(workers=0) as room:
        _, said = await room.ask("GET", "/api/room")
        assert not said["warming"]
        assert "No worker" in said["sentence"]
        room.app[WARMING].set()
        _, said = await room.ask("GET", "/api/room")
        assert not said["online"]
        assert said["warming"]
        assert said["sentence"].startswith("The engine is warming up.")


async def test_who_waits_hears_what_a_starting_worker_loads(open_room: OpenRoom, broker: Broker) -> None:
    said = "A worker is starting: loading embedded, 1.2 of 2.0 GB."
    progress = ModelProgress(model="embedded", phase="load", done=0.6, size=2 * 10**9)
    async with open_room(workers=0) as room, AsyncExitStack() as parts:
        job = await room.imagine("terrier")
        worker = await Bus.connect(broker.url, broker.token)
        parts.push_async_callback(worker.close)
        async with asyncio.timeout(20):
            async for name, value in room.events(f"/api/jobs/{job}/events"):
                if name == "queued" and value["starting"] == said:
                    break
                await worker.publish_progress("far", ("default",), progress)
        _, shown = await room.ask("GET", f"/api/jobs/{job}")
        assert (shown["worker"], shown["starting"], shown["why"]) == (False, said, said)
        _, shown = await room.ask("GET", "/api/room")
        assert (shown["online"], shown["warming"], shown["sentence"]) == (False, True, said)
        assert (await room.ask("GET", "/healthz"))[1]["workers"] == 0
        status, ticket = await room.ask("POST", "/api/jobs", {"prompt": "terrier"})
        assert (status, ticket["worker"], ticket["starting"]) == (201, False, said)


async def test_a_prompt_becomes_a_job_with_a_place_and_an_address(room: Room) -> None:
    body = {"prompt": "red apple", "seed": 7, "steps": 12, "count": 2, "sampler": "ddim", "guidance": 4}
    async with room.client.post(f"{room.url}/api/jobs", json=body) as answer:
        said = await answer.json()
        assert answer.status == 201
        assert answer.headers["Location"] == f"/api/jobs/{said['id']}"
    assert said["ids"] == [said["id"]]
    assert (said["seed"], said["steps"], said["count"], said["sampler"]) == (7, 12, 2, "ddim")
    assert said["place"] == 0
    assert said["worker"] is True
    job = await room.end_of(said["id"])
    assert (job["seed"], job["steps"], job["count"], job["guidance"]) == (7, 12, 2, 4)


async def test_a_finished_job_has_pictures_a_grid_and_a_film(room: Room) -> None:
    job = await room.end_of(await room.imagine("terrier"))
    assert job["state"] == "finished"
    assert job["percent"] == 100
    assert job["author"] == {"name": "Terminal", "you": True}
    assert [picture["n"] for picture in job["pictures"]] == [1, 2, 3, 4]
    first = await fetched(room, job["pictures"][0]["url"], "image/png", "PNG")
    assert first.size == (64, 64)
    grid = await fetched(room, job["grid"], "image/png", "PNG")
    assert grid.width == grid.height > 2 * 64
    film = await fetched(room, job["film"], "image/webp", "WEBP")
    assert film.n_frames > 3  # type: ignore[attr-defined]


async def test_every_rung_of_the_film_can_be_fetched(room: Room) -> None:
    job = await room.end_of(await room.imagine("terrier"))
    _, said = await room.ask("GET", job["rungs"])
    steps = [rung["step"] for rung in said["rungs"]]
    assert steps == sorted(steps)
    assert steps[-1] == job["of"]
    first = await fetched(room, said["rungs"][0]["url"], "image/webp", "WEBP")
    last = await fetched(room, said["rungs"][-1]["url"], "image/webp", "WEBP")
    assert first.tobytes() != last.tobytes()
    status, _ = await room.ask("GET", f"{job['rungs']}/99.webp")
    assert status == 404


async def fetched(room: Room, path: str, kind: str, form: str) -> Image.Image:
    async with room.client.get(room.url + path) as answer:
        assert answer.status == 200
        assert answer.content_type == kind
        assert "immutable" in answer.headers["Cache-Control"]
        image = Image.open(io.BytesIO(await answer.read()))
        assert image.format == form
        return image


async def test_pictures_are_numbered_from_one(room: Room) -> None:
    job = await room.imagine("terrier", count=1)
    await room.end_of(job)
    for n, status in (("1", 200), ("0", 404), ("2", 404), ("5", 404), ("x", 404), ("-1", 404), ("٣", 404)):
        async with room.client.get(f"{room.url}/api/jobs/{job}/pictures/{n}.png") as answer:
            assert answer.status == status, n


async def test_variations_rerolls_and_enlargements_name_their_parent(room: Room) -> None:
    job = await room.imagine("terrier", seed=7)
    await room.end_of(job)
    for path, action, number in (("vary/2", "vary", 2), ("upscale/3", "upscale", 3)):
        status, said = await room.ask("POST", f"/api/jobs/{job}/{path}")
        assert status == 201, said
        child = await room.end_of(said["id"])
        assert (child["action"], child["parent"]) == (action, {"id": job, "picture": number})
    status, said = await room.ask("POST", f"/api/jobs/{job}/reroll")
    assert status == 201
    again = await room.end_of(said["id"])
    assert (again["action"], again["prompt"]) == ("reroll", "terrier")
    assert again["seed"] != 7


async def test_an_enlargement_is_larger_and_says_how(room: Room) -> None:
    job = await room.imagine("terrier")
    await room.end_of(job)
    _, said = await room.ask("POST", f"/api/jobs/{job}/upscale/1")
    end = await room.end_of(said["id"])
    assert end["task"] == "enlarge"
    picture = await fetched(room, end["pictures"][0]["url"], "image/png", "PNG")
    assert picture.width > 64
    assert "Lanczos" in " ".join([end["footer"], *end["notes"], *said["notes"]])


async def test_permutations_make_several_jobs(room: Room) -> None:
    status, said = await room.ask("POST", "/api/jobs", {"prompt": "{red, green} apple", "count": 1})
    assert status == 201
    assert len(said["ids"]) == 2
    assert [job["prompt"] for job in said["jobs"]] != []
    for job in said["ids"]:
        assert (await room.end_of(job))["state"] == "finished"


async def test_a_walk_is_several_jobs_and_a_film(room: Room) -> None:
    status, said = await room.ask("POST", "/api/jobs", {"prompt": "an apple", "walk": "a pear", "frames": 6})
    assert (status, len(said["ids"])) == (201, 2)
    for job in said["ids"]:
        assert (await room.end_of(job))["state"] == "finished"
    jobs = [(await room.ask("GET", f"/api/jobs/{job}"))[1] for job in said["ids"]]
    assert [job["walk"] for job in jobs] == [{"to": "a pear", "first": at, "of": 6, "noises": []} for at in (0, 4)]
    [films] = [job["walks"] for job in jobs if job["walks"]]
    async with room.client.get(room.url + films["gif"]) as answer:
        assert (answer.status, answer.content_type) == (200, "image/gif")
        assert answer.headers["Cache-Control"] == "no-store"
    pair = await room.end_of(await room.imagine("an apple", count=2))
    assert pair["walkable"]
    status, said = await room.ask("POST", f"/api/jobs/{pair['id']}/walk")
    assert (status, len(said["ids"])) == (201, 4)
    single = await room.end_of(await room.imagine("an apple", count=1))
    assert not single["walkable"]
    assert (single["walk"], single["walks"]) == (None, {})
    async with room.client.get(f"{room.url}/api/jobs/{single['id']}/walk.webp") as answer:
        assert answer.status == 404
    asked = Asked("/api/jobs", {"prompt": "an apple --walk a pear --frames 6"})
    with Screen(Console(quiet=True), 6) as screen:
        done = await remote.develop(room.url, "", asked, film=False, screen=screen)
    assert len(done.pictures) == 6
    assert done.film is not None
    assert done.film[8:12] == b"WEBP"


async def test_flags_that_mean_nothing_here_are_mentioned(room: Room) -> None:
    _, said = await room.ask("POST", "/api/jobs", {"prompt": "terrier --v 6"})
    assert any("--v" in note for note in said["notes"])


async def test_the_same_idempotency_key_is_the_same_job(room: Room) -> None:
    first = await room.ask("POST", "/api/jobs", {"prompt": "terrier"}, Idempotency_Key="one")
    again = await room.ask("POST", "/api/jobs", {"prompt": "terrier"}, Idempotency_Key="one")
    other = await room.ask("POST", "/api/jobs", {"prompt": "terrier"}, Idempotency_Key="two")
    assert first[1]["id"] == again[1]["id"] != other[1]["id"]
    await room.end_of(first[1]["id"])
    path = f"/api/jobs/{first[1]['id']}/reroll"
    once, twice = [await room.ask("POST", path, Idempotency_Key="one") for _ in range(2)]
    assert once[1]["id"] == twice[1]["id"] != first[1]["id"]


async def test_a_running_job_can_be_cancelled(room: Room) -> None:
    room.drawers[0].speed = 0.1
    job = await room.imagine("terrier")
    async for name, _ in room.events(f"/api/jobs/{job}/events"):
        if name == "frame":
            break
    room.drawers[0].going.clear()
    status, said = await room.ask("DELETE", f"/api/jobs/{job}")
    assert status == 200
    assert said["sentence"]
    end = await room.end_of(job)
    assert end["state"] == "cancelled"
    assert end["pictures"] == []
    assert end["reason"]


async def test_a_running_job_is_paused_and_goes_on(room: Room) -> None:
    room.drawers[0].speed = 0.05
    job = await room.imagine("terrier")
    async for name, _ in room.events(f"/api/jobs/{job}/events"):
        if name == "frame":
            break
    status, said = await room.ask("POST", f"/api/jobs/{job}/pause")
    assert (status, said["id"]) == (200, job)
    assert said["sentence"].startswith("Paused: it keeps its place")
    status, said = await room.ask("POST", f"/api/jobs/{job}/priority", {"weight": 2})
    assert (status, said["sentence"]) == (200, "Its priority among the author's jobs is now 2.")
    await asyncio.sleep(1.5)  # longer than all of its steps
    assert (await room.ask("GET", f"/api/jobs/{job}"))[1]["state"] == "running"
    status, said = await room.ask("POST", f"/api/jobs/{job}/resume")
    assert (status, said["sentence"]) == (200, "Resumed.")
    assert (await room.end_of(job))["state"] == "finished"
    heard = [(steer.job, steer.deed, steer.weight) for steer in room.drawers[0].steers]
    assert heard == [(job, "pause", 1.0), (job, "weigh", 2.0), (job, "resume", 1.0)]


async def test_what_does_not_run_cannot_be_paused(room: Room) -> None:
    job = await room.imagine("terrier")
    await room.end_of(job)
    for deed, body in (("pause", None), ("resume", None), ("priority", {"weight": 1})):
        status, said = await room.ask("POST", f"/api/jobs/{job}/{deed}", body)
        assert (status, said["error"]) == (422, "Too late: it has finished already.")
        status, said = await room.ask("POST", f"/api/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/{deed}", body)
        assert status == 404
    for weight in (0, -1, 1001, "2", None):
        status, said = await room.ask("POST", f"/api/jobs/{job}/priority", {"weight": weight})
        assert status == 400
    assert room.drawers[0].steers == []


async def test_a_job_that_waits_cannot_be_paused(open_room: OpenRoom) -> None:
    async with open_room(workers=0) as room:
        job = await room.imagine("terrier")
        status, said = await room.ask("POST", f"/api/jobs/{job}/pause")
        assert (status, said["error"]) == (422, "It has not begun, so it cannot be paused or prioritised yet.")


async def test_what_failed_says_why(room: Room) -> None:
    end = await room.end_of(await room.imagine("an impossible thing"))
    assert end["state"] == "failed"
    assert "out of bounds" in end["reason"]


async def test_jobs_lists_what_was_made(room: Room) -> None:
    job = await room.imagine("terrier")
    await room.end_of(job)
    status, said = await room.ask("GET", "/api/jobs")
    assert status == 200
    assert [one["id"] for one in said["jobs"]] == [job]


async def test_without_a_worker_it_is_said_at_once(open_room: OpenRoom) -> None:
    async with open_room(workers=0) as room:
        status, said = await room.ask("POST", "/api/jobs", {"prompt": "terrier"})
        if status == 201:
            assert said["worker"] is False
        else:
            assert status == 422
            assert "worker" in said["error"].lower()
        _, said = await room.ask("GET", "/api/room")
        assert not said["online"]
        assert "No worker" in said["sentence"]


pytestmark = pytest.mark.asyncio


async def test_a_visitor_notes_flags_of_their_own_and_types_them(room: Room) -> None:
    path = "/api/prefer/options"
    assert await room.ask("GET", path) == (200, {"options": {}})
    mine = {"mine": "pale --seed 5 --count 1"}
    assert await room.ask("PUT", path, {"name": "--Mine", "value": mine["mine"]}) == (200, {"options": mine})
    job = await room.end_of(await room.imagine("red apple --mine"))
    assert (job["prompt"], job["seed"]) == ("red apple pale --seed 5 --count 1", 5)
    status, said = await room.ask("PUT", path, {"name": "other", "value": "--steps 9999"})
    assert (status, said["error"]) == (422, "--steps 9999 is not possible: it takes 1 to 1000.")
    assert (await room.ask("PUT", path, {"name": "mine", "values": ""}))[0] == 400
    assert await room.ask("PUT", path, {"name": "mine"}) == (200, {"options": {}})
    assert (await room.ask("PUT", path, {"name": "mine"}))[0] == 404
