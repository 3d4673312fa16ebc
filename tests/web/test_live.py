"""The event streams: what comes first, what comes last, who is not told, and what a slow reader misses."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from bot.desk.studio import Member, Place
from bot.feed import Queued
from bot.web.live import STREAMS
from engine.job import ModelProgress

if TYPE_CHECKING:
    from tests.web.conftest import OpenRoom, Room

pytestmark = pytest.mark.asyncio


async def test_one_job_is_queued_develops_and_finishes(room: Room) -> None:
    job = await room.imagine("terrier")
    heard = [event async for event in room.events(f"/api/jobs/{job}/events")]
    names = [name for name, _ in heard]
    assert names[0] == "queued"
    assert names[-1] == "finished"
    assert set(names[1:-1]) <= {"queued", "frame"}
    assert all(value["id"] == job for _, value in heard)
    steps = [value["step"] for name, value in heard if name == "frame"]
    assert len(steps) > 3
    assert steps == sorted(steps)


async def test_a_frame_is_a_picture_of_each_image_on_its_way(room: Room) -> None:
    job = await room.imagine("terrier", count=2)
    seen: dict[str, set[bytes]] = {}
    async for name, value in room.events(f"/api/jobs/{job}/events"):
        if name == "frame":
            assert value["percent"] == value["step"] * 100 // value["of"]
            assert value["seconds_left"] >= 0
            for number, text in value["frames"].items():
                jpeg = base64.b64decode(text)
                assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
                seen.setdefault(number, set()).add(jpeg)
    assert set(seen) == {"1", "2"}
    assert all(len(frames) > 3 for frames in seen.values())


async def test_a_model_on_its_way_is_told_in_bytes_where_its_worker_says_its_size(room: Room) -> None:
    drawer = room.drawers[0]
    size = ModelProgress(model="embedded", phase="load", done=0.4, size=2 * 10**9)
    await drawer.bus.publish_progress(drawer.name, ("default",), size)
    drawer.loading, drawer.stand_at = (0.0, 0.404), 0
    job = await room.imagine("terrier", count=1)
    async with asyncio.timeout(20):
        async for name, value in room.events(f"/api/jobs/{job}/events"):
            if name == "loading" and value["percent"] == 40:
                assert value["sentence"] == "loading embedded, 0.8 of 2.0 GB"
                break
    drawer.going.set()


async def test_a_model_on_its_way_is_told_and_ends_with_the_first_frame(room: Room) -> None:
    room.drawers[0].loading, room.drawers[0].stand_at = (0.0, 0.404), 0
    job = await room.imagine("terrier", count=1)
    heard: list[str] = []
    value: dict[str, Any] = {}
    async for name, value in room.events(f"/api/jobs/{job}/events"):
        heard.append(name)
        if name == "loading" and value["percent"] == 40:
            assert value == {"id": job, "model": "embedded", "percent": 40, "sentence": "loading embedded, 40 %"}
            break
    page = room.events("/api/events")
    seen = [await anext(page) for _ in range(3)]  # whoever comes now is told as well
    assert seen[-1] == ("loading", value)
    room.drawers[0].going.set()
    later = [name async for name, _ in room.events(f"/api/jobs/{job}/events")]
    assert later[-1] == "finished"
    last = max((number for number, name in enumerate(later) if name == "loading"), default=0)
    assert "frame" in later[last:]  # its begin may be told as one before


async def test_failure_and_cancellation_are_told(room: Room) -> None:
    job = await room.imagine("an impossible thing")
    *_, (name, value) = [event async for event in room.events(f"/api/jobs/{job}/events")]
    assert name == "failed"
    assert value["reason"]
    room.drawers[0].going.clear()
    job = await room.imagine("terrier")
    stream = room.events(f"/api/jobs/{job}/events")
    await anext(stream)
    await room.ask("DELETE", f"/api/jobs/{job}")
    assert [name async for name, _ in stream][-1] == "cancelled"


async def test_a_job_that_is_over_tells_its_end_once(room: Room) -> None:
    job = await room.imagine("terrier", count=1)
    await room.end_of(job)
    path = f"/api/jobs/{job}/events"
    assert [name async for name, _ in room.events(path)] == ["finished"]
    async with room.client.get(room.url + path, headers={"Last-Event-ID": "end"}) as answer:
        assert answer.status == 204  # or a browser would come back for ever


async def test_the_page_hears_of_everything_on_one_stream(room: Room) -> None:
    before = await room.imagine("before", count=1)
    await room.end_of(before)
    stream = room.events("/api/events")
    first = dict([await anext(stream) for _ in range(2)])
    assert first["room"]["online"]
    assert [job["id"] for job in first["jobs"]["jobs"]] == [before]
    jobs = {await room.imagine(prompt, count=1) for prompt in ("one", "two")}
    heard: dict[str, list[str]] = {job: [] for job in jobs}
    async for name, value in stream:
        if name == "room":
            continue
        heard[value["id"]].append(name if name != "job" else f"job {value['state']}")
        if all(names[-1:] == ["job finished"] for names in heard.values()):
            break
    for names in heard.values():
        assert names[0].startswith("job ")
        assert names.count("frame") > 3


async def test_places_in_the_queue_hold_nobody_up(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.live.PACE", 3600.0)
    await room.drawers[0].leave()
    waits = await room.imagine("terrier", count=1)
    stream, alone = room.events("/api/events"), room.events(f"/api/jobs/{waits}/events")
    await _next(stream, "jobs")
    await _next(alone, "queued")
    async with asyncio.timeout(20):
        for place in range(100, 105):
            room.studio.feed.publish(Queued(waits, place, None))
            for one in (stream, alone):
                assert (await _next(one, "queued"))["id"] == waits


async def test_jobs_of_a_discord_server_are_not_for_this_page(room: Room) -> None:
    elsewhere = Member("discord:1", "Ann", "discord:9")
    stream = room.events("/api/events")
    _ = [await anext(stream) for _ in range(2)]
    (ticket,) = await room.studio.imagine("a secret", elsewhere, Place("discord"), count=1)
    await room.end_of(ticket.job)
    here = await room.imagine("ours", count=1)
    async for name, value in stream:
        assert value.get("id", here) == here
        if name == "job" and value["state"] == "finished":
            break
    _, said = await room.ask("GET", "/api/jobs")
    assert [job["id"] for job in said["jobs"]] == [here]


async def test_a_worker_that_leaves_is_told(room: Room) -> None:
    stream = room.events("/api/events")
    assert (await _next(stream, "room"))["online"]
    await room.drawers[0].leave()
    assert not (await _next(stream, "room"))["online"]


async def _next(stream: AsyncIterator[tuple[str, Any]], wanted: str) -> Any:
    async for name, value in stream:
        if name == wanted:
            return value
    raise AssertionError(f"the stream ended without {wanted}")


async def test_a_slow_reader_misses_frames_but_never_the_end(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.web.live.PACE", 0)
    room.drawers[0].speed = 0.003
    steps = 400
    reader, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=1 << 14)
    writer.write(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{room.port}\r\n\r\n".encode())
    text = b""
    try:
        await room.end_of(await room.imagine("terrier", steps=steps))
        while b'"state": "finished"' not in text:
            text += await asyncio.wait_for(reader.read(1 << 16), 20)
    finally:
        writer.close()
    frames = text.count(b"event: frame")
    assert 0 < frames < steps // 2


async def test_a_reader_who_leaves_is_forgotten(room: Room) -> None:
    stream = room.events("/api/events")
    await anext(stream)
    assert len(room.app[STREAMS]) == 1
    await stream.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(10):
        while room.app[STREAMS]:
            await asyncio.sleep(0.05)


async def test_closing_the_house_ends_the_streams(open_room: OpenRoom) -> None:
    async with open_room() as room:
        stream = room.events("/api/events")
        await anext(stream)
        await room.app.shutdown()
        async with asyncio.timeout(10):
            _ = [event async for event in stream]
