"""Event streams: their first and last event, their readers, and the events that a slow reader misses."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from bot.domain.events import QueueMoved
from bot.jobs.drawing import Destination, Member
from bot.web.sse import STREAMS
from engine.contract import ModelProgress

if TYPE_CHECKING:
    from shared.web_server import OpenServer, WebServer

pytestmark = pytest.mark.asyncio


async def test_the_stream_of_a_job_goes_from_queued_over_frames_to_finished(server: WebServer) -> None:
    job = await server.imagine("terrier")
    events = [event async for event in server.events(f"/api/jobs/{job}/events")]
    names = [name for name, _ in events]
    assert names[0] == "queued"
    assert names[-1] == "finished"
    assert set(names[1:-1]) <= {"queued", "frame"}
    assert all(value["id"] == job for _, value in events)
    steps = [value["step"] for name, value in events if name == "frame"]
    assert len(steps) > 3
    assert steps == sorted(steps)


async def test_a_frame_event_has_a_preview_of_each_image(server: WebServer) -> None:
    job = await server.imagine("terrier", count=2)
    previews: dict[str, set[bytes]] = {}
    async for name, value in server.events(f"/api/jobs/{job}/events"):
        if name == "frame":
            assert value["percent"] == value["step"] * 100 // value["total_steps"]
            assert value["seconds_left"] >= 0
            for number, text in value["frames"].items():
                preview = base64.b64decode(text)
                assert Image.open(io.BytesIO(preview)).format == "JPEG"
                previews.setdefault(number, set()).add(preview)
    assert set(previews) == {"1", "2"}
    assert all(len(frames) > 3 for frames in previews.values())


async def test_loading_progress_is_in_bytes_where_the_worker_says_the_size(server: WebServer) -> None:
    worker = server.workers[0]
    size = ModelProgress(model="embedded", phase="load", done=0.4, size=2 * 10**9)
    await worker.bus.publish_progress(worker.name, ("default",), size)
    worker.loading_progress = (0.0, 0.404)
    worker.pause_step = 0
    job = await server.imagine("terrier", count=1)
    async with asyncio.timeout(20):
        async for name, value in server.events(f"/api/jobs/{job}/events"):
            if name == "loading" and value["percent"] == 40:
                assert value["sentence"] == "loading embedded, 0.8 of 2.0 GB"
                break
    worker.step_gate.set()


async def test_loading_progress_is_sent_until_the_first_frame(server: WebServer) -> None:
    server.workers[0].loading_progress = (0.0, 0.404)
    server.workers[0].pause_step = 0
    job = await server.imagine("terrier", count=1)
    received_names: list[str] = []
    value: dict[str, Any] = {}
    async for name, value in server.events(f"/api/jobs/{job}/events"):
        received_names.append(name)
        if name == "loading" and value["percent"] == 40:
            assert value == {"id": job, "model": "embedded", "percent": 40, "sentence": "loading embedded, 40 %"}
            break
    page = server.events("/api/events")
    events = [await anext(page) for _ in range(3)]  # a new reader gets it as well
    assert events[-1] == ("loading", value)
    server.workers[0].step_gate.set()
    later_names = [name async for name, _ in server.events(f"/api/jobs/{job}/events")]
    assert later_names[-1] == "finished"
    last = max((number for number, name in enumerate(later_names) if name == "loading"), default=0)
    assert "frame" in later_names[last:]  # its start may be sent as a loading event before


async def test_failure_and_cancellation_are_sent(server: WebServer) -> None:
    job = await server.imagine("an impossible thing")
    *_, (name, value) = [event async for event in server.events(f"/api/jobs/{job}/events")]
    assert name == "failed"
    assert value["reason"]
    server.workers[0].step_gate.clear()
    job = await server.imagine("terrier")
    stream = server.events(f"/api/jobs/{job}/events")
    await anext(stream)
    await server.request_json("DELETE", f"/api/jobs/{job}")
    assert [name async for name, _ in stream][-1] == "cancelled"


async def test_the_stream_of_an_ended_job_sends_its_end_once(server: WebServer) -> None:
    job = await server.imagine("terrier", count=1)
    await server.wait_for_end(job)
    path = f"/api/jobs/{job}/events"
    assert [name async for name, _ in server.events(path)] == ["finished"]
    async with server.client.get(server.url + path, headers={"Last-Event-ID": "end"}) as answer:
        assert answer.status == 204  # otherwise a browser would reconnect for ever


async def test_the_page_receives_everything_on_one_stream(server: WebServer) -> None:
    before = await server.imagine("before", count=1)
    await server.wait_for_end(before)
    stream = server.events("/api/events")
    first = dict([await anext(stream) for _ in range(2)])
    assert first["workers"]["online"]
    assert [job["id"] for job in first["jobs"]["jobs"]] == [before]
    jobs = {await server.imagine(prompt, count=1) for prompt in ("one", "two")}
    received_names: dict[str, list[str]] = {job: [] for job in jobs}
    async for name, value in stream:
        if name == "workers":
            continue
        received_names[value["id"]].append(name if name != "job" else f"job {value['state']}")
        if all(names[-1:] == ["job finished"] for names in received_names.values()):
            break
    for names in received_names.values():
        assert names[0].startswith("job ")
        assert names.count("frame") > 3


async def test_places_in_the_queue_are_sent_without_a_pause(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.sse.FRAME_PAUSE", 3600.0)
    await server.workers[0].leave_pool()
    waiting_job = await server.imagine("terrier", count=1)
    stream = server.events("/api/events")
    job_stream = server.events(f"/api/jobs/{waiting_job}/events")
    await _next_event(stream, "jobs")
    await _next_event(job_stream, "queued")
    async with asyncio.timeout(20):
        for event_id in range(100, 105):
            server.services.feed.publish(QueueMoved(waiting_job, event_id, None))
            for one in (stream, job_stream):
                assert (await _next_event(one, "queued"))["id"] == waiting_job


async def test_the_page_receives_no_jobs_of_a_discord_server(server: WebServer) -> None:
    member_elsewhere = Member("discord:1", "Ann", "discord:9")
    stream = server.events("/api/events")
    _ = [await anext(stream) for _ in range(2)]
    (accepted,) = await server.services.jobs.imagine("a secret", member_elsewhere, Destination("discord"), count=1)
    await server.wait_for_end(accepted.job)
    own_job = await server.imagine("ours", count=1)
    async for name, value in stream:
        assert value.get("id", own_job) == own_job
        if name == "job" and value["state"] == "finished":
            break
    _, reply = await server.request_json("GET", "/api/jobs")
    assert [job["id"] for job in reply["jobs"]] == [own_job]


async def test_a_worker_that_leaves_is_reported(server: WebServer) -> None:
    stream = server.events("/api/events")
    assert (await _next_event(stream, "workers"))["online"]
    await server.workers[0].leave_pool()
    assert not (await _next_event(stream, "workers"))["online"]


async def _next_event(stream: AsyncIterator[tuple[str, Any]], event_name: str) -> Any:
    async for name, value in stream:
        if name == event_name:
            return value
    raise AssertionError(f"the stream ended without {event_name}")


@pytest.mark.slow
async def test_a_slow_reader_misses_frames_but_never_the_end(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.web.sse.FRAME_PAUSE", 0)
    server.workers[0].speed = 0.003
    steps = 400
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 14)
    writer.write(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    text = b""
    try:
        await server.wait_for_end(await server.imagine("terrier", steps=steps))
        while b'"state":"finished"' not in text:
            text += await asyncio.wait_for(reader.read(1 << 16), 20)
    finally:
        writer.close()
    frames = text.count(b"event: frame")
    assert 0 < frames < steps // 2


async def test_a_reader_who_leaves_is_removed(server: WebServer) -> None:
    stream = server.events("/api/events")
    await anext(stream)
    assert len(server.app[STREAMS]) == 1
    await stream.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while server.app[STREAMS]:
            await asyncio.sleep(0.05)


async def test_closing_the_bot_ends_the_streams(open_server: OpenServer) -> None:
    async with open_server() as server:
        stream = server.events("/api/events")
        await anext(stream)
        await server.app.shutdown()
        async with asyncio.timeout(10):
            _ = [event async for event in stream]
