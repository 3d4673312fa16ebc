"""The HTTP API over a real bot: clients request, follow, fetch, vary, upscale and cancel jobs."""

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
    from engine.bus.embedded_broker import Broker
    from shared.web_server import OpenServer, WebServer


async def test_healthz_says_ok(server: WebServer) -> None:
    status, reply = await server.request_json("GET", "/healthz")
    assert (status, reply["status"], reply["workers"]) == (200, "ok", 1)


async def test_the_api_lists_workers_models_and_devices(server: WebServer) -> None:
    status, reply = await server.request_json("GET", "/api/workers")
    assert status == 200
    assert reply["online"]
    assert reply["models"] == ["embedded"]
    (worker,) = reply["workers"]
    assert worker["device"] == "paper and ink"
    assert [model["upscale_factor"] for model in worker["models"]] == [1]


async def test_an_engine_that_warms_up_is_reported(open_server: OpenServer) -> None:
    async with open_server(workers=0) as server:
        _, reply = await server.request_json("GET", "/api/workers")
        assert not reply["engine_loading"]
        assert "No worker" in reply["sentence"]
        server.app[ENGINE_LOADING].set()
        _, reply = await server.request_json("GET", "/api/workers")
        assert not reply["online"]
        assert reply["engine_loading"]
        assert reply["sentence"].startswith("The engine is loading.")


async def test_a_waiting_job_shows_what_a_starting_worker_loads(open_server: OpenServer, broker: Broker) -> None:
    sentence = "A worker is starting: loading embedded, 1.2 of 2.0 GB."
    progress = ModelProgress(model="embedded", phase="load", done=0.6, size=2 * 10**9)
    async with open_server(workers=0) as server, AsyncExitStack() as parts:
        job = await server.imagine("terrier")
        worker = await Bus.connect(broker.url, broker.token)
        parts.push_async_callback(worker.close)
        async with asyncio.timeout(20):
            async for name, value in server.events(f"/api/jobs/{job}/events"):
                if name == "queued" and value["startup_notice"] == sentence:
                    break
                await worker.publish_progress("far", ("default",), progress)
        _, reply = await server.request_json("GET", f"/api/jobs/{job}")
        assert (reply["has_worker"], reply["startup_notice"], reply["wait_reason"]) == (False, sentence, sentence)
        _, reply = await server.request_json("GET", "/api/workers")
        assert (reply["online"], reply["engine_loading"], reply["sentence"]) == (False, True, sentence)
        assert (await server.request_json("GET", "/healthz"))[1]["workers"] == 0
        status, accepted = await server.request_json("POST", "/api/jobs", {"prompt": "terrier"})
        assert (status, accepted["has_worker"], accepted["startup_notice"]) == (201, False, sentence)


async def test_a_prompt_becomes_a_job_with_a_place_in_the_queue_and_a_url(server: WebServer) -> None:
    body = {"prompt": "red apple", "seed": 7, "steps": 12, "count": 2, "sampler": "ddim", "guidance": 4}
    async with server.client.post(f"{server.url}/api/jobs", json=body) as answer:
        reply = await answer.json()
        assert answer.status == 201
        assert answer.headers["Location"] == f"/api/jobs/{reply['id']}"
    assert reply["ids"] == [reply["id"]]
    assert (reply["seed"], reply["steps"], reply["count"], reply["sampler"]) == (7, 12, 2, "ddim")
    assert reply["jobs_ahead"] == 0
    assert reply["has_worker"] is True
    job = await server.wait_for_end(reply["id"])
    assert (job["seed"], job["steps"], job["count"], job["guidance"]) == (7, 12, 2, 4)


async def test_a_finished_job_has_pictures_a_grid_and_a_film(server: WebServer) -> None:
    job = await server.wait_for_end(await server.imagine("terrier"))
    assert (job["kind"], job["state"]) == ("generate", "finished")
    assert job["percent"] == 100
    assert job["author"] == {"name": "Terminal", "you": True}
    assert [picture["n"] for picture in job["pictures"]] == [1, 2, 3, 4]
    first = await fetch_image(server, job["pictures"][0]["url"], "image/png", "PNG")
    assert first.size == (64, 64)
    grid = await fetch_image(server, job["grid"], "image/png", "PNG")
    assert grid.width == grid.height > 2 * 64
    film = await fetch_image(server, job["film"], "image/webp", "WEBP")
    assert film.n_frames > 3  # type: ignore[attr-defined]


async def test_every_keyframe_of_the_film_can_be_fetched(server: WebServer) -> None:
    job = await server.wait_for_end(await server.imagine("terrier"))
    _, reply = await server.request_json("GET", job["keyframes"])
    steps = [keyframe["step"] for keyframe in reply["keyframes"]]
    assert steps == sorted(steps)
    assert steps[-1] == job["total_steps"]
    first = await fetch_image(server, reply["keyframes"][0]["url"], "image/webp", "WEBP")
    last = await fetch_image(server, reply["keyframes"][-1]["url"], "image/webp", "WEBP")
    assert first.tobytes() != last.tobytes()
    status, _ = await server.request_json("GET", f"{job['keyframes']}/99.webp")
    assert status == 404


async def fetch_image(server: WebServer, path: str, kind: str, form: str) -> Image.Image:
    async with server.client.get(server.url + path) as answer:
        assert answer.status == 200
        assert answer.content_type == kind
        assert "immutable" in answer.headers["Cache-Control"]
        image = Image.open(io.BytesIO(await answer.read()))
        assert image.format == form
        return image


async def test_pictures_are_numbered_from_one(server: WebServer) -> None:
    job = await server.imagine("terrier", count=1)
    await server.wait_for_end(job)
    for n, status in (("1", 200), ("0", 404), ("2", 404), ("5", 404), ("x", 404), ("-1", 404), ("٣", 404)):
        async with server.client.get(f"{server.url}/api/jobs/{job}/pictures/{n}.png") as answer:
            assert answer.status == status, n


@pytest.mark.slow
async def test_variations_rerolls_and_upscales_name_their_parent(server: WebServer) -> None:
    job = await server.imagine("terrier", seed=7)
    await server.wait_for_end(job)
    for path, action, number in (("vary/2", "vary", 2), ("upscale/3", "upscale", 3)):
        status, reply = await server.request_json("POST", f"/api/jobs/{job}/{path}")
        assert status == 201, reply
        child = await server.wait_for_end(reply["id"])
        assert (child["action"], child["parent"]) == (action, {"id": job, "picture": number})
    status, reply = await server.request_json("POST", f"/api/jobs/{job}/reroll")
    assert status == 201
    retried_job = await server.wait_for_end(reply["id"])
    assert (retried_job["action"], retried_job["prompt"]) == ("reroll", "terrier")
    assert retried_job["seed"] != 7


async def test_a_draft_is_finished_and_a_branch_says_how_often_the_network_is_asked(server: WebServer) -> None:
    job = await server.imagine("terrier", seed=7, count=1, steps=40, draft=True)
    draft = await server.wait_for_end(job)
    assert (draft["steps"], draft["evaluations"], draft["is_draft"]) == (40, 25, True)
    status, reply = await server.request_json("POST", f"/api/jobs/{job}/finish")
    assert (status, reply["evaluations"]) == (201, 40)
    finished = await server.wait_for_end(reply["id"])
    assert (finished["action"], finished["seed"], finished["is_draft"]) == ("finish", 7, False)
    assert finished["parent"] == {"id": job, "picture": 1}
    status, reply = await server.request_json("POST", f"/api/jobs/{finished['id']}/finish")
    assert (status, reply["error"]) == (422, "Each of its steps had an evaluation, so it is as fine as it can be.")
    for evaluations, answer in (("all", 40), (10, 10)):
        body = {"step": 20, "evaluations": evaluations}
        status, reply = await server.request_json("POST", f"/api/jobs/{job}/branch/1", body)
        assert (status, reply["evaluations"]) == (201, answer)
    status, reply = await server.request_json("POST", "/api/jobs", {"prompt": "terrier", "evaluations": "some"})
    assert (status, reply["error"]) == (422, "--evaluations some is not possible: it takes 5 to 1000, all or auto.")


async def test_an_upscale_is_larger_and_names_its_method(server: WebServer) -> None:
    job = await server.imagine("terrier")
    await server.wait_for_end(job)
    _, reply = await server.request_json("POST", f"/api/jobs/{job}/upscale/1")
    end = await server.wait_for_end(reply["id"])
    assert end["kind"] == "upscale"
    picture = await fetch_image(server, end["pictures"][0]["url"], "image/png", "PNG")
    assert picture.width > 64
    assert "Lanczos" in " ".join([end["footer"], *end["notes"], *reply["notes"]])


async def test_permutations_make_several_jobs(server: WebServer) -> None:
    status, reply = await server.request_json("POST", "/api/jobs", {"prompt": "{red, green} apple", "count": 1})
    assert status == 201
    assert len(reply["ids"]) == 2
    assert [job["prompt"] for job in reply["jobs"]] != []
    for job in reply["ids"]:
        assert (await server.wait_for_end(job))["state"] == "finished"


@pytest.mark.slow
async def test_an_interpolation_is_several_jobs_and_a_film(server: WebServer) -> None:
    status, reply = await server.request_json(
        "POST", "/api/jobs", {"prompt": "an apple", "walk": "a pear", "frames": 6}
    )
    assert (status, len(reply["ids"])) == (201, 2)
    for job in reply["ids"]:
        assert (await server.wait_for_end(job))["state"] == "finished"
    jobs = [(await server.request_json("GET", f"/api/jobs/{job}"))[1] for job in reply["ids"]]
    assert [job["walk"] for job in jobs] == [
        {"to_prompt": "a pear", "first_frame": first_frame, "total_frames": 6, "noise_seeds": []}
        for first_frame in (0, 4)
    ]
    [films] = [job["walk_films"] for job in jobs if job["walk_films"]]
    async with server.client.get(server.url + films["gif"]) as answer:
        assert (answer.status, answer.content_type) == (200, "image/gif")
        assert answer.headers["Cache-Control"] == "no-store"
    pair = await server.wait_for_end(await server.imagine("an apple", count=2))
    assert pair["can_interpolate"]
    status, reply = await server.request_json("POST", f"/api/jobs/{pair['id']}/walk")
    assert (status, len(reply["ids"])) == (201, 4)
    single = await server.wait_for_end(await server.imagine("an apple", count=1))
    assert not single["can_interpolate"]
    assert (single["walk"], single["walk_films"]) == (None, {})
    async with server.client.get(f"{server.url}/api/jobs/{single['id']}/walk.webp") as answer:
        assert answer.status == 404
    request = ApiRequest("/api/jobs", {"prompt": "an apple --walk a pear --frames 6"})
    with ProgressDisplay(Console(quiet=True), 6) as screen:
        result = await http_client.generate(server.url, "", request, film=False, display=screen)
    assert len(result.pictures) == 6
    assert result.film is not None
    assert result.film[8:12] == b"WEBP"


async def test_flags_without_effect_are_mentioned(server: WebServer) -> None:
    _, reply = await server.request_json("POST", "/api/jobs", {"prompt": "terrier --v 6"})
    assert any("--v" in note for note in reply["notes"])


async def test_the_same_idempotency_key_is_the_same_job(server: WebServer) -> None:
    first = await server.request_json("POST", "/api/jobs", {"prompt": "terrier"}, Idempotency_Key="one")
    repeated_reply = await server.request_json("POST", "/api/jobs", {"prompt": "terrier"}, Idempotency_Key="one")
    other = await server.request_json("POST", "/api/jobs", {"prompt": "terrier"}, Idempotency_Key="two")
    assert first[1]["id"] == repeated_reply[1]["id"] != other[1]["id"]
    await server.wait_for_end(first[1]["id"])
    path = f"/api/jobs/{first[1]['id']}/reroll"
    first_reply, second_reply = [await server.request_json("POST", path, Idempotency_Key="one") for _ in range(2)]
    assert first_reply[1]["id"] == second_reply[1]["id"] != first[1]["id"]


async def test_a_running_job_can_be_cancelled(server: WebServer) -> None:
    server.workers[0].speed = 0.1
    job = await server.imagine("terrier")
    async for name, _ in server.events(f"/api/jobs/{job}/events"):
        if name == "frame":
            break
    server.workers[0].step_gate.clear()
    status, reply = await server.request_json("DELETE", f"/api/jobs/{job}")
    assert status == 200
    assert reply["sentence"]
    end = await server.wait_for_end(job)
    assert end["state"] == "cancelled"
    assert end["pictures"] == []
    assert end["reason"]


@pytest.mark.slow
async def test_a_running_job_is_paused_and_goes_on(server: WebServer) -> None:
    server.workers[0].speed = 0.05
    job = await server.imagine("terrier")
    async for name, _ in server.events(f"/api/jobs/{job}/events"):
        if name == "frame":
            break
    status, reply = await server.request_json("POST", f"/api/jobs/{job}/pause")
    assert (status, reply["id"]) == (200, job)
    assert reply["sentence"].startswith("Paused: it keeps its place")
    status, reply = await server.request_json("POST", f"/api/jobs/{job}/priority", {"weight": 2})
    assert (status, reply["sentence"]) == (200, "Its priority among the author's jobs is now 2.")
    await asyncio.sleep(1.5)  # longer than all of its steps
    assert (await server.request_json("GET", f"/api/jobs/{job}"))[1]["state"] == "running"
    status, reply = await server.request_json("POST", f"/api/jobs/{job}/resume")
    assert (status, reply["sentence"]) == (200, "Resumed.")
    assert (await server.wait_for_end(job))["state"] == "finished"
    messages = [(message.job, message.action, message.weight) for message in server.workers[0].control_messages]
    assert messages == [(job, "pause", 1.0), (job, "weigh", 2.0), (job, "resume", 1.0)]


async def test_an_ended_job_cannot_be_paused(server: WebServer) -> None:
    job = await server.imagine("terrier")
    await server.wait_for_end(job)
    for action, body in (("pause", None), ("resume", None), ("priority", {"weight": 1})):
        status, reply = await server.request_json("POST", f"/api/jobs/{job}/{action}", body)
        assert (status, reply["error"]) == (422, "Too late: it has finished already.")
        status, reply = await server.request_json("POST", f"/api/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/{action}", body)
        assert status == 404
    for weight in (0, -1, 1001, "2", None):
        status, reply = await server.request_json("POST", f"/api/jobs/{job}/priority", {"weight": weight})
        assert status == 400
    assert server.workers[0].control_messages == []


async def test_a_waiting_job_cannot_be_paused(open_server: OpenServer) -> None:
    async with open_server(workers=0) as server:
        job = await server.imagine("terrier")
        status, reply = await server.request_json("POST", f"/api/jobs/{job}/pause")
        assert (status, reply["error"]) == (422, "It has not begun, so it cannot be paused or prioritised yet.")


async def test_a_failed_job_says_why(server: WebServer) -> None:
    end = await server.wait_for_end(await server.imagine("an impossible thing"))
    assert end["state"] == "failed"
    assert "out of bounds" in end["reason"]


async def test_the_list_of_jobs_shows_a_finished_one(server: WebServer) -> None:
    job = await server.imagine("terrier")
    await server.wait_for_end(job)
    status, reply = await server.request_json("GET", "/api/jobs")
    assert status == 200
    assert [one["id"] for one in reply["jobs"]] == [job]


async def test_a_missing_worker_is_reported_at_once(open_server: OpenServer) -> None:
    async with open_server(workers=0) as server:
        status, reply = await server.request_json("POST", "/api/jobs", {"prompt": "terrier"})
        if status == 201:
            assert reply["has_worker"] is False
        else:
            assert status == 422
            assert "worker" in reply["error"].lower()
        _, reply = await server.request_json("GET", "/api/workers")
        assert not reply["online"]
        assert "No worker" in reply["sentence"]


pytestmark = pytest.mark.asyncio
