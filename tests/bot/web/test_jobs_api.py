"""The HTTP API over a real bot: jobs are requested, followed, fetched, varied, upscaled and cancelled."""

from __future__ import annotations

import asyncio
import io
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from rich.console import Console

from bot.cli.imagine import http_client
from bot.cli.imagine.job_inputs import ApiRequest
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.web.sse import ENGINE_LOADING
from engine.bus import Bus
from engine.contract import ModelProgress

if TYPE_CHECKING:
    from engine.bus.broker.embedded import Broker
    from tests.bot.web.conftest import OpenRoom, Room


async def test_healthz_says_ok(room: Room) -> None:
    status, reply = await room.ask("GET", "/healthz")
    assert (status, reply["status"], reply["workers"]) == (200, "ok", 1)


async def test_the_room_names_its_workers_models_and_device(room: Room) -> None:
    status, reply = await room.ask("GET", "/api/workers")
    assert status == 200
    assert reply["online"]
    assert reply["models"] == ["embedded"]
    assert reply["workers"][0]["device"] == "paper and ink"


async def test_an_engine_that_warms_up_is_reported(open_room: OpenRoom) -> None:
    async with open_room(workers=0) as room:
        _, reply = await room.ask("GET", "/api/workers")
        assert not reply["engine_loading"]
        assert "No worker" in reply["sentence"]
        room.app[ENGINE_LOADING].set()
        _, reply = await room.ask("GET", "/api/workers")
        assert not reply["online"]
        assert reply["engine_loading"]
        assert reply["sentence"].startswith("The engine is loading.")


async def test_a_waiting_job_shows_what_a_starting_worker_loads(open_room: OpenRoom, broker: Broker) -> None:
    sentence = "A worker is starting: loading embedded, 1.2 of 2.0 GB."
    progress = ModelProgress(model="embedded", phase="load", done=0.6, size=2 * 10**9)
    async with open_room(workers=0) as room, AsyncExitStack() as parts:
        job = await room.imagine("terrier")
        worker = await Bus.connect(broker.url, broker.token)
        parts.push_async_callback(worker.close)
        async with asyncio.timeout(20):
            async for name, value in room.events(f"/api/jobs/{job}/events"):
                if name == "queued" and value["startup_notice"] == sentence:
                    break
                await worker.publish_progress("far", ("default",), progress)
        _, reply = await room.ask("GET", f"/api/jobs/{job}")
        assert (reply["has_worker"], reply["startup_notice"], reply["wait_reason"]) == (False, sentence, sentence)
        _, reply = await room.ask("GET", "/api/workers")
        assert (reply["online"], reply["engine_loading"], reply["sentence"]) == (False, True, sentence)
        assert (await room.ask("GET", "/healthz"))[1]["workers"] == 0
        status, ticket = await room.ask("POST", "/api/jobs", {"prompt": "terrier"})
        assert (status, ticket["has_worker"], ticket["startup_notice"]) == (201, False, sentence)


async def test_a_prompt_becomes_a_job_with_a_place_in_the_queue_and_a_url(room: Room) -> None:
    body = {"prompt": "red apple", "seed": 7, "steps": 12, "count": 2, "sampler": "ddim", "guidance": 4}
    async with room.client.post(f"{room.url}/api/jobs", json=body) as answer:
        reply = await answer.json()
        assert answer.status == 201
        assert answer.headers["Location"] == f"/api/jobs/{reply['id']}"
    assert reply["ids"] == [reply["id"]]
    assert (reply["seed"], reply["steps"], reply["count"], reply["sampler"]) == (7, 12, 2, "ddim")
    assert reply["jobs_ahead"] == 0
    assert reply["has_worker"] is True
    job = await room.end_of(reply["id"])
    assert (job["seed"], job["steps"], job["count"], job["guidance"]) == (7, 12, 2, 4)


async def test_a_finished_job_has_pictures_a_grid_and_a_film(room: Room) -> None:
    job = await room.end_of(await room.imagine("terrier"))
    assert job["state"] == "finished"
    assert job["percent"] == 100
    assert job["author"] == {"name": "Terminal", "you": True}
    assert [picture["n"] for picture in job["pictures"]] == [1, 2, 3, 4]
    first = await fetch_image(room, job["pictures"][0]["url"], "image/png", "PNG")
    assert first.size == (64, 64)
    grid = await fetch_image(room, job["grid"], "image/png", "PNG")
    assert grid.width == grid.height > 2 * 64
    film = await fetch_image(room, job["film"], "image/webp", "WEBP")
    assert film.n_frames > 3  # type: ignore[attr-defined]


async def test_every_keyframe_of_the_film_can_be_fetched(room: Room) -> None:
    job = await room.end_of(await room.imagine("terrier"))
    _, reply = await room.ask("GET", job["keyframes"])
    steps = [rung["step"] for rung in reply["keyframes"]]
    assert steps == sorted(steps)
    assert steps[-1] == job["total_steps"]
    first = await fetch_image(room, reply["keyframes"][0]["url"], "image/webp", "WEBP")
    last = await fetch_image(room, reply["keyframes"][-1]["url"], "image/webp", "WEBP")
    assert first.tobytes() != last.tobytes()
    status, _ = await room.ask("GET", f"{job['keyframes']}/99.webp")
    assert status == 404


async def fetch_image(room: Room, path: str, kind: str, form: str) -> Image.Image:
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


@pytest.mark.slow
async def test_variations_rerolls_and_upscales_name_their_parent(room: Room) -> None:
    job = await room.imagine("terrier", seed=7)
    await room.end_of(job)
    for path, action, number in (("vary/2", "vary", 2), ("upscale/3", "upscale", 3)):
        status, reply = await room.ask("POST", f"/api/jobs/{job}/{path}")
        assert status == 201, reply
        child = await room.end_of(reply["id"])
        assert (child["action"], child["parent"]) == (action, {"id": job, "picture": number})
    status, reply = await room.ask("POST", f"/api/jobs/{job}/reroll")
    assert status == 201
    again = await room.end_of(reply["id"])
    assert (again["action"], again["prompt"]) == ("reroll", "terrier")
    assert again["seed"] != 7


async def test_an_upscale_is_larger_and_names_its_method(room: Room) -> None:
    job = await room.imagine("terrier")
    await room.end_of(job)
    _, reply = await room.ask("POST", f"/api/jobs/{job}/upscale/1")
    end = await room.end_of(reply["id"])
    assert end["kind"] == "upscale"
    picture = await fetch_image(room, end["pictures"][0]["url"], "image/png", "PNG")
    assert picture.width > 64
    assert "Lanczos" in " ".join([end["footer"], *end["notes"], *reply["notes"]])


async def test_permutations_make_several_jobs(room: Room) -> None:
    status, reply = await room.ask("POST", "/api/jobs", {"prompt": "{red, green} apple", "count": 1})
    assert status == 201
    assert len(reply["ids"]) == 2
    assert [job["prompt"] for job in reply["jobs"]] != []
    for job in reply["ids"]:
        assert (await room.end_of(job))["state"] == "finished"


@pytest.mark.slow
async def test_an_interpolation_is_several_jobs_and_a_film(room: Room) -> None:
    status, reply = await room.ask("POST", "/api/jobs", {"prompt": "an apple", "walk": "a pear", "frames": 6})
    assert (status, len(reply["ids"])) == (201, 2)
    for job in reply["ids"]:
        assert (await room.end_of(job))["state"] == "finished"
    jobs = [(await room.ask("GET", f"/api/jobs/{job}"))[1] for job in reply["ids"]]
    assert [job["walk"] for job in jobs] == [
        {"to_prompt": "a pear", "first_frame": at, "total_frames": 6, "noise_seeds": []} for at in (0, 4)
    ]
    [films] = [job["walk_films"] for job in jobs if job["walk_films"]]
    async with room.client.get(room.url + films["gif"]) as answer:
        assert (answer.status, answer.content_type) == (200, "image/gif")
        assert answer.headers["Cache-Control"] == "no-store"
    pair = await room.end_of(await room.imagine("an apple", count=2))
    assert pair["can_interpolate"]
    status, reply = await room.ask("POST", f"/api/jobs/{pair['id']}/walk")
    assert (status, len(reply["ids"])) == (201, 4)
    single = await room.end_of(await room.imagine("an apple", count=1))
    assert not single["can_interpolate"]
    assert (single["walk"], single["walk_films"]) == (None, {})
    async with room.client.get(f"{room.url}/api/jobs/{single['id']}/walk.webp") as answer:
        assert answer.status == 404
    request = ApiRequest("/api/jobs", {"prompt": "an apple --walk a pear --frames 6"})
    with ProgressDisplay(Console(quiet=True), 6) as screen:
        result = await http_client.generate(room.url, "", request, film=False, display=screen)
    assert len(result.pictures) == 6
    assert result.film is not None
    assert result.film[8:12] == b"WEBP"


async def test_flags_without_effect_are_mentioned(room: Room) -> None:
    _, reply = await room.ask("POST", "/api/jobs", {"prompt": "terrier --v 6"})
    assert any("--v" in note for note in reply["notes"])


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
    status, reply = await room.ask("DELETE", f"/api/jobs/{job}")
    assert status == 200
    assert reply["sentence"]
    end = await room.end_of(job)
    assert end["state"] == "cancelled"
    assert end["pictures"] == []
    assert end["reason"]


@pytest.mark.slow
async def test_a_running_job_is_paused_and_goes_on(room: Room) -> None:
    room.drawers[0].speed = 0.05
    job = await room.imagine("terrier")
    async for name, _ in room.events(f"/api/jobs/{job}/events"):
        if name == "frame":
            break
    status, reply = await room.ask("POST", f"/api/jobs/{job}/pause")
    assert (status, reply["id"]) == (200, job)
    assert reply["sentence"].startswith("Paused: it keeps its place")
    status, reply = await room.ask("POST", f"/api/jobs/{job}/priority", {"weight": 2})
    assert (status, reply["sentence"]) == (200, "Its priority among the author's jobs is now 2.")
    await asyncio.sleep(1.5)  # longer than all of its steps
    assert (await room.ask("GET", f"/api/jobs/{job}"))[1]["state"] == "running"
    status, reply = await room.ask("POST", f"/api/jobs/{job}/resume")
    assert (status, reply["sentence"]) == (200, "Resumed.")
    assert (await room.end_of(job))["state"] == "finished"
    messages = [(steer.job, steer.deed, steer.weight) for steer in room.drawers[0].steers]
    assert messages == [(job, "pause", 1.0), (job, "weigh", 2.0), (job, "resume", 1.0)]


async def test_an_ended_job_cannot_be_paused(room: Room) -> None:
    job = await room.imagine("terrier")
    await room.end_of(job)
    for deed, body in (("pause", None), ("resume", None), ("priority", {"weight": 1})):
        status, reply = await room.ask("POST", f"/api/jobs/{job}/{deed}", body)
        assert (status, reply["error"]) == (422, "Too late: it has finished already.")
        status, reply = await room.ask("POST", f"/api/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/{deed}", body)
        assert status == 404
    for weight in (0, -1, 1001, "2", None):
        status, reply = await room.ask("POST", f"/api/jobs/{job}/priority", {"weight": weight})
        assert status == 400
    assert room.drawers[0].steers == []


async def test_a_waiting_job_cannot_be_paused(open_room: OpenRoom) -> None:
    async with open_room(workers=0) as room:
        job = await room.imagine("terrier")
        status, reply = await room.ask("POST", f"/api/jobs/{job}/pause")
        assert (status, reply["error"]) == (422, "It has not begun, so it cannot be paused or prioritised yet.")


async def test_a_failed_job_says_why(room: Room) -> None:
    end = await room.end_of(await room.imagine("an impossible thing"))
    assert end["state"] == "failed"
    assert "out of bounds" in end["reason"]


async def test_the_list_of_jobs_shows_a_finished_one(room: Room) -> None:
    job = await room.imagine("terrier")
    await room.end_of(job)
    status, reply = await room.ask("GET", "/api/jobs")
    assert status == 200
    assert [one["id"] for one in reply["jobs"]] == [job]


async def test_a_missing_worker_is_reported_at_once(open_room: OpenRoom) -> None:
    async with open_room(workers=0) as room:
        status, reply = await room.ask("POST", "/api/jobs", {"prompt": "terrier"})
        if status == 201:
            assert reply["has_worker"] is False
        else:
            assert status == 422
            assert "worker" in reply["error"].lower()
        _, reply = await room.ask("GET", "/api/workers")
        assert not reply["online"]
        assert "No worker" in reply["sentence"]


pytestmark = pytest.mark.asyncio


async def test_a_visitor_defines_flag_aliases_and_uses_them(room: Room) -> None:
    path = "/api/prefer/options"
    assert await room.ask("GET", path) == (200, {"options": {}})
    mine = {"mine": "pale --seed 5 --count 1"}
    assert await room.ask("PUT", path, {"name": "--Mine", "value": mine["mine"]}) == (200, {"options": mine})
    job = await room.end_of(await room.imagine("red apple --mine"))
    assert (job["prompt"], job["seed"]) == ("red apple pale --seed 5 --count 1", 5)
    status, reply = await room.ask("PUT", path, {"name": "other", "value": "--steps 9999"})
    assert (status, reply["error"]) == (422, "--steps 9999 is not possible: it takes 1 to 1000.")
    assert (await room.ask("PUT", path, {"name": "mine", "values": ""}))[0] == 400
    assert await room.ask("PUT", path, {"name": "mine"}) == (200, {"options": {}})
    assert (await room.ask("PUT", path, {"name": "mine"}))[0] == 404
