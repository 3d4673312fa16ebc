"""`darkroom imagine` with a running bot: how it recognises one, and how long it follows a job's stream."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from bot.cli.imagine import http_client
from bot.cli.imagine.job_inputs import ApiRequest
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.imagine.result import GenerationError

pytestmark = pytest.mark.asyncio
FINISHED = {
    "id": "J",
    "state": "finished",
    "seed": 7,
    "steps": 4,
    "evaluations": 4,
    "sampler": "ddpm",
    "pictures": [],
    "film": None,
    "walk_films": {},
    "seconds": 1.0,
    "ms_per_step": 1.0,
    "reason": "",
}
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serve(*routes: web.RouteDef) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "status_body", "is_darkroom"),
    [
        (200, '{"status": "ok", "app": "darkroom"}', True),
        (200, '{"status": "ok"}', False),
        (200, '"darkroom"', False),
        (200, "<html>", False),
        (500, '{"app": "darkroom"}', False),
    ],
)
async def test_only_a_running_darkroom_is_recognised(status: int, status_body: str, is_darkroom: bool) -> None:
    async def answer_health(_: web.Request) -> web.Response:
        return web.Response(status=status, text=status_body)

    async with serve(web.get("/healthz", answer_health)) as url:
        assert await http_client.is_darkroom_running(url) is is_darkroom
    assert not await http_client.is_darkroom_running(url)  # it no longer runs


class FakeServer:
    """Accepts one job. Its stream breaks `break_count` times, after one event each, or after none if `is_silent`."""

    def __init__(self, break_count: int, *, is_silent: bool) -> None:
        self.break_count = break_count
        self.is_silent = is_silent
        self.open_count = 0

    async def imagine(self, _: web.Request) -> web.Response:
        return web.json_response({"id": "J", "ids": ["J"], "notes": [], "has_worker": True}, status=201)

    async def events(self, request: web.Request) -> web.StreamResponse:
        self.open_count += 1
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        if not self.is_silent:
            await answer.write(b'event: queued\ndata: {"jobs_ahead": 1, "eta": null}\n\n')
        if self.open_count > self.break_count:
            await answer.write(f"event: finished\ndata: {json.dumps(FINISHED)}\n\n".encode())
        return answer


async def follow_job(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def skip_sleep(_: float) -> None:
        return

    monkeypatch.setattr("bot.cli.imagine.http_client.asyncio.sleep", skip_sleep)
    routes = web.post("/api/jobs", server.imagine), web.get("/api/jobs/J/events", server.events)
    async with serve(*routes) as url:
        with ProgressDisplay(Console(quiet=True), 1) as screen:
            return await http_client.generate(
                url, "key", ApiRequest("/api/jobs", {"prompt": "a"}), film=False, display=screen
            )


async def test_a_stream_that_breaks_now_and_then_is_followed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(break_count=12, is_silent=False)
    result = await follow_job(server, monkeypatch)
    assert result.seed == 7
    assert server.open_count == 13


async def test_a_silent_stream_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(break_count=99, is_silent=True)
    with pytest.raises(GenerationError, match="Lost the connection"):
        await follow_job(server, monkeypatch)
    assert server.open_count == http_client.MAX_RECONNECTS


async def test_finished_parts_of_an_interpolation_stay_when_another_fails() -> None:
    text = io.StringIO()
    failed_job = {**FINISHED, "id": "K", "state": "failed", "reason": "The worker has no memory left for it."}
    with ProgressDisplay(Console(file=text, width=200), 1) as screen:
        assert http_client._select_finished([FINISHED, failed_job, FINISHED], screen) == [FINISHED, FINISHED]
        with pytest.raises(GenerationError, match="no memory left"):
            http_client._select_finished([failed_job, failed_job], screen)
    assert text.getvalue().count("Part 2 of 3 has no pictures: The worker has no memory left for it.") == 1


async def test_a_loading_model_is_shown_until_the_first_step() -> None:
    text = io.StringIO()
    with ProgressDisplay(Console(file=text, force_terminal=True, width=80), 1) as screen:
        for percent in (10, 40):
            progress = {"id": "J", "model": "sd-1.5", "percent": percent, "sentence": f"loading sd-1.5, {percent} %"}
            http_client._show_event("loading", progress, screen)
            screen._live.refresh()
        assert "loading sd-1.5, 10 %" in text.getvalue()
        assert "loading sd-1.5, 40 %" in text.getvalue()
        http_client._show_event("frame", {"step": 1, "total_steps": 4, "seconds_left": 3.0, "frames": {}}, screen)
        screen._live.refresh()
    assert "step 1 of 4" in text.getvalue()
