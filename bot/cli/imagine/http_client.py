"""HTTP client of a running Darkroom: submits jobs, watches them, fetches pictures, asks for image-to-prompt.

`darkroom imagine` and `darkroom mcp` use it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import aiohttp

from bot.cli import instance_lock
from bot.cli.imagine.job_inputs import ApiRequest
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.imagine.result import GenerationError, ImagineResult
from bot.domain.errors import UserError
from bot.web.auth import terminal_key
from engine.contract import MAX_COUNT

QUICK_TIMEOUT = aiohttp.ClientTimeout(total=3)
REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=30)
# image-to-prompt tries hundreds of words, perhaps after a wait for other pictures
DESCRIBE_TIMEOUT = aiohttp.ClientTimeout(total=600)
STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)  # the stream pings every 10 s
MAX_LINE_BYTES = 4 * 1024 * 1024  # bytes: four previews in one event, base64
MAX_RECONNECTS = 5  # attempts to reconnect without any event in between
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
REFUSALS = (401, 403, 404)  # of a stream that no further try would open
END_EVENTS = ("finished", "failed", "cancelled", "deleted")


async def is_darkroom_running(url: str) -> bool:
    """Return whether a Darkroom answers at `url`: any program may use the port of one that has ended."""
    try:
        async with aiohttp.ClientSession(timeout=QUICK_TIMEOUT) as session, session.get(f"{url}/healthz") as response:
            health = await response.json(content_type=None)
            is_object = response.status == 200 and isinstance(health, dict)
            return is_object and cast(dict[str, object], health).get("app") == "darkroom"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
        return False


async def find_running(data: Path) -> tuple[str, str] | None:
    """Return address and terminal key of the Darkroom that runs on this data folder; None if none answers."""
    instance = instance_lock.find_instance(data)
    if instance is None or not await is_darkroom_running(instance.url):
        return None
    return instance.url, await asyncio.to_thread(terminal_key, data)


async def ask_running(data: Path, path: str) -> dict[str, Any] | None:
    """Return what the Darkroom that runs on this data folder answers; None if none answers, or it refuses."""
    running = await find_running(data)
    try:
        return None if running is None else await request_json("GET", *running, path)
    except (GenerationError, UserError):
        return None


def open_session(
    url: str, key: str, timeout: aiohttp.ClientTimeout = REQUEST_TIMEOUT, headers: Mapping[str, str] = NO_HEADERS
) -> aiohttp.ClientSession:
    """Return a session for that Darkroom, whose requests carry `key`; without one, a header that allows forms."""
    own_headers = {"Authorization": f"Bearer {key}"} if key else {"X-Darkroom": "1"}
    return aiohttp.ClientSession(url, headers={**headers, **own_headers}, timeout=timeout, read_bufsize=MAX_LINE_BYTES)


async def generate(url: str, key: str, request: ApiRequest, *, film: bool, display: ProgressDisplay) -> ImagineResult:
    """Run one job there, or all of an interpolation. A cancellation also cancels these jobs.

    Raise `UserError`, or `GenerationError` if none is finished.
    """
    async with open_session(url, key) as session:
        accepted = await send_request(session, "POST", request.path, request.body, request.files)
        for note in accepted["notes"]:
            display.print_note(note)
        if not accepted["has_worker"]:
            display.print_note(accepted.get("startup_notice") or "No worker is online: the job waits until one comes.")
        ended_jobs = await _wait_for_jobs(session, [str(job) for job in accepted["ids"]], display)
        for picture in (each for ended_job in ended_jobs for each in ended_job.get("pictures", ())):
            if picture["held"]:
                display.print_note(picture["held"])
        finished_jobs = _select_finished(ended_jobs, display)
        return await _fetch_result(session, finished_jobs, film=film, preview_count=display.frame_count)


async def _wait_for_jobs(
    session: aiohttp.ClientSession, jobs: Sequence[str], display: ProgressDisplay
) -> list[dict[str, Any]]:
    """Return how each job ended; for several, read again once all have ended."""
    ended_jobs = list[dict[str, Any]]()
    try:
        for position, job in enumerate(jobs):
            value: dict[str, Any] = {}
            async for event, value in follow_job(session, job):
                _show_event(event, value, display, MAX_COUNT * position)
            ended_jobs.append(value)
    except asyncio.CancelledError:
        for job in jobs:
            await send_request(session, "DELETE", f"/api/jobs/{job}")
        raise
    return ended_jobs if len(jobs) == 1 else [await send_request(session, "GET", f"/api/jobs/{job}") for job in jobs]


def _select_finished(ended_jobs: Sequence[dict[str, Any]], display: ProgressDisplay) -> list[dict[str, Any]]:
    """Return the finished jobs, and print a line on each other one. Raise `GenerationError` if none is finished."""
    unfinished = [(position, job) for position, job in enumerate(ended_jobs, 1) if job["state"] != "finished"]
    reasons = [job["reason"] or f"The job was {job['state']}." for _, job in unfinished]
    if len(unfinished) == len(ended_jobs):
        raise GenerationError(reasons[0])
    for (position, _), reason in zip(unfinished, reasons, strict=True):
        display.print_note(f"Part {position} of {len(ended_jobs)} has no pictures: {reason}")
    return [job for job in ended_jobs if job["state"] == "finished"]


async def request_json(
    method: str, url: str, key: str, path: str, body: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return one answer of the API. Raise `UserError`, or `GenerationError` if there is no answer."""
    async with open_session(url, key, QUICK_TIMEOUT) as session:
        return await send_request(session, method, path, body)


async def request_description(session: aiohttp.ClientSession, picture: bytes, model: str | None) -> dict[str, Any]:
    """Return prompts for a picture file, over a session with `DESCRIBE_TIMEOUT`.

    Raises `UserError`, or `GenerationError` if there is no answer.
    """
    body = {} if model is None else {"model": model}
    return await send_request(session, "POST", "/api/describe", body, (("picture", picture),))


async def send_request(
    session: aiohttp.ClientSession,
    method: str,
    path: str,
    body: Mapping[str, object] | None = None,
    files: Sequence[tuple[str, bytes]] = (),
) -> dict[str, Any]:
    """Return one answer of the API, whose path is its address there; with `files`, send a form.

    Raise `UserError`, or `GenerationError` if there is no answer.
    """
    payload: dict[str, Any] = {"data": _build_form(body, files)} if files else {"json": body}
    try:
        async with session.request(method, path, **payload) as response:
            response_body: dict[str, Any] = await response.json()
            sentence = str(response_body.get("error", response.reason))
            if response.status >= 500:
                raise GenerationError(f"The running Darkroom failed: {sentence}")
            if response.status >= 400:
                raise UserError(sentence)
            return response_body
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise GenerationError(f"The running Darkroom did not answer: {str(error) or type(error).__name__}.") from error


def _build_form(body: Mapping[str, object] | None, files: Sequence[tuple[str, bytes]]) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("request", json.dumps(body), content_type="application/json")
    for name, content in files:
        form.add_field(name, content, filename=name, content_type="application/octet-stream")
    return form


async def follow_job(session: aiohttp.ClientSession, job: str) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield the events of a job's stream, up to its end; reconnect while the server lives.

    Raise `UserError` if it is refused, `GenerationError` if the connection is lost.
    """
    failures = 0  # in a row
    while failures < MAX_RECONNECTS:
        await asyncio.sleep(failures)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with contextlib.aclosing(_read_events(session, f"/api/jobs/{job}/events")) as events:
                async for event, value in events:
                    yield event, value
                    if event in END_EVENTS:
                        return
                    failures = 0
        failures += 1
    raise GenerationError(f"Lost the connection to Darkroom. Job {job} continues when it restarts.")


def _show_event(event: str, value: dict[str, Any], display: ProgressDisplay, first_index: int = 0) -> None:
    """Show an event. `first_index`: the index of its job's first picture among all on the screen."""
    if event == "queued":
        display.show_queue(int(value["jobs_ahead"] or 0), value["eta"])
    elif event == "loading":
        display.show_loading(str(value["sentence"]), int(value["percent"]))
    elif event == "frame":
        display.show_step(int(value["step"]), int(value["total_steps"]), float(value["seconds_left"]))
        for number, jpeg in value["frames"].items():
            display.show_frame(first_index + int(number) - 1, base64.b64decode(jpeg))


async def _read_events(session: aiohttp.ClientSession, path: str) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield server-sent events: name and JSON (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    async with session.get(path, headers={"Accept": "text/event-stream"}, timeout=STREAM_TIMEOUT) as response:
        if response.status in REFUSALS:
            raise UserError(str((await response.json())["error"]))
        response.raise_for_status()
        name = "message"
        lines = list[str]()
        async for raw_line in response.content:
            line = raw_line.decode().rstrip("\r\n")
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                lines.append(value)
            elif not line:
                if lines:
                    yield name, json.loads("\n".join(lines))
                name = "message"
                lines = []


async def _fetch_result(
    session: aiohttp.ClientSession, ended_jobs: Sequence[dict[str, Any]], *, film: bool, preview_count: int
) -> ImagineResult:
    picture_refs = [picture_ref for job in ended_jobs for picture_ref in job["pictures"]]
    first_job = ended_jobs[0]
    visible_refs = [picture_ref for picture_ref in picture_refs if not picture_ref["held"]]
    if picture_refs and not visible_refs:
        raise GenerationError("All of its pictures are held by the picture check.")
    walk_film_urls = [job["walk_films"]["webp"] for job in ended_jobs if job["walk_films"]]
    film_url = walk_film_urls[0] if walk_film_urls else first_job["film"] if film else None
    return ImagineResult(
        **{name: first_job[name] for name in ("id", "seed", "steps", "evaluations", "sampler")},
        pictures=tuple([await fetch_bytes(session, picture_ref["url"]) for picture_ref in visible_refs]),
        film=await fetch_bytes(session, film_url) if film_url else None,
        preview_count=preview_count,
        seconds=sum(job["seconds"] or 0.0 for job in ended_jobs),
        ms_per_step=first_job["ms_per_step"] or 0.0,
        numbers=tuple(picture_ref["n"] for picture_ref in visible_refs) if len(ended_jobs) == 1 else (),
    )


async def fetch_bytes(session: aiohttp.ClientSession, path: str) -> bytes:
    """Return the file at an address of the API. Raise `GenerationError`."""
    try:
        async with session.get(path) as response:
            response.raise_for_status()
            return await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise GenerationError(f"A finished picture could not be fetched: {reason}.") from error
