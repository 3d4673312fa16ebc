"""HTTP client of a running Darkroom: submits jobs, watches them, fetches pictures, asks for image-to-prompt."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp

from bot.cli.bringing import Asked
from bot.cli.developed import Developed, Undeveloped
from bot.cli.screen import Screen
from bot.refused import Refused
from engine.job import MAX_COUNT

GLANCE = aiohttp.ClientTimeout(total=3)
ANSWER = aiohttp.ClientTimeout(total=30)
LOOKING = aiohttp.ClientTimeout(total=600)  # image-to-prompt tries hundreds of words, perhaps after others' pictures
STREAM = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)  # the stream pings every 10 s
LINE = 4 * 1024 * 1024  # bytes: four previews in one event, base64
TRIES = 5  # to reconnect without receiving any event
ENDS = ("finished", "failed", "cancelled", "deleted")


async def answers(url: str) -> bool:
    """Return whether a Darkroom answers at `url`: any program may use the port of one that has ended."""
    try:
        async with aiohttp.ClientSession(timeout=GLANCE) as session, session.get(f"{url}/healthz") as answer:
            found = await answer.json(content_type=None)
            return answer.status == 200 and isinstance(found, dict) and found.get("app") == "darkroom"
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
        return False


async def refused(url: str, key: str) -> list[tuple[str, str]] | None:
    """Return what that Darkroom refused in the last minute, as sender and reason; None without an answer."""
    try:
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession(timeout=GLANCE, headers=headers) as session,
            session.get(f"{url}/api/refused") as answer,
        ):
            found = await answer.json(content_type=None)
            return [(str(one["who"]), str(one["why"])) for one in found["refused"]] if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


async def develop(url: str, key: str, asked: Asked, *, film: bool, screen: Screen) -> Developed:
    """Run one job there, or all of an interpolation. Cancelled, this cancels them as well.

    Raise `Refused`, or `Undeveloped` if none is finished.
    """
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers, timeout=ANSWER, read_bufsize=LINE) as session:
        ticket = await _json(session, "POST", asked.path, asked.order, asked.files)
        for note in ticket["notes"]:
            screen.say(note)
        if not ticket["worker"]:
            screen.say(ticket.get("starting") or "No worker is online: the job waits until one comes.")
        ends = await _ended(session, [str(job) for job in ticket["ids"]], screen)
        for shot in (shot for end in ends for shot in end.get("pictures", ())):
            if shot["held"]:
                screen.say(shot["held"])
        return await _fetch(session, _finished(ends, screen), film=film, frames=screen.frames)


async def _ended(session: aiohttp.ClientSession, jobs: Sequence[str], screen: Screen) -> list[dict[str, Any]]:
    """Return how each job ended; for several, read again once all have ended."""
    try:
        ends = [await _watch(session, job, screen, MAX_COUNT * place) for place, job in enumerate(jobs)]
    except asyncio.CancelledError:
        for job in jobs:
            await _json(session, "DELETE", f"/api/jobs/{job}", None)
        raise
    return ends if len(jobs) == 1 else [await _json(session, "GET", f"/api/jobs/{job}", None) for job in jobs]


def _finished(ends: Sequence[dict[str, Any]], screen: Screen) -> list[dict[str, Any]]:
    """Return the finished jobs, and print a line on each other one. Raise `Undeveloped` if none is finished."""
    lost = [(place, each) for place, each in enumerate(ends, 1) if each["state"] != "finished"]
    reasons = [each["reason"] or f"The job was {each['state']}." for _, each in lost]
    if len(lost) == len(ends):
        raise Undeveloped(reasons[0])
    for (place, _), reason in zip(lost, reasons, strict=True):
        screen.say(f"Part {place} of {len(ends)} has no pictures: {reason}")
    return [each for each in ends if each["state"] == "finished"]


async def ask(url: str, key: str, path: str) -> dict[str, Any]:
    """Return one answer of the API. Raise `Refused`, or `Undeveloped` if there is no answer."""
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers, timeout=GLANCE) as session:
        return await _json(session, "GET", path, None)


async def describe(url: str, key: str, picture: bytes, model: str | None) -> dict[str, Any]:
    """Return prompts for a picture file. Raise `Refused`, or `Undeveloped` if there is no answer."""
    headers, order = {"Authorization": f"Bearer {key}"}, {} if model is None else {"model": model}
    async with aiohttp.ClientSession(url, headers=headers, timeout=LOOKING) as session:
        return await _json(session, "POST", "/api/describe", order, (("picture", picture),))


async def _json(
    session: aiohttp.ClientSession, method: str, path: str, body: Mapping[str, object] | None,
    files: Sequence[tuple[str, bytes]] = (),
) -> dict[str, Any]:  # fmt: skip
    said: dict[str, Any] = {"data": _form(body, files)} if files else {"json": body}
    try:
        async with session.request(method, path, **said) as answer:
            found: dict[str, Any] = await answer.json()
            if answer.status >= 400:
                raise _refusal(answer.status, str(found.get("error", answer.reason)))
            return found
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Undeveloped(f"The running Darkroom did not answer: {str(error) or type(error).__name__}.") from error


def _form(order: Mapping[str, object] | None, files: Sequence[tuple[str, bytes]]) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("order", json.dumps(order), content_type="application/json")
    for name, content in files:
        form.add_field(name, content, filename=name, content_type="application/octet-stream")
    return form


def _refusal(status: int, sentence: str) -> Exception:
    """Return the error of a status: 400–499 is the caller's fault, all else the server's."""
    return Refused(sentence) if status < 500 else Undeveloped(f"The running Darkroom failed: {sentence}")


async def _watch(session: aiohttp.ClientSession, job: str, screen: Screen, first: int = 0) -> dict[str, Any]:
    """Return the job's end from its event stream; reconnect while the server lives.

    `first`: the index of its first picture among all on the screen.
    """
    failures = 0  # in a row
    while failures < TRIES:
        await asyncio.sleep(failures)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async for event, value in _events(session, f"/api/jobs/{job}/events"):
                if event in ENDS:
                    return value
                _show(event, value, screen, first)
                failures = 0
        failures += 1
    raise Undeveloped(f"The running Darkroom went away. Job {job} goes on when it is back.")


def _show(event: str, value: dict[str, Any], screen: Screen, first: int = 0) -> None:
    if event == "queued":
        screen.wait(int(value["place"] or 0), value["eta"])
    elif event == "loading":
        screen.load(str(value["sentence"]), int(value["percent"]))
    elif event == "frame":
        screen.step(int(value["step"]), int(value["of"]), float(value["seconds_left"]))
        for number, jpeg in value["frames"].items():
            screen.frame(first + int(number) - 1, base64.b64decode(jpeg))


async def _events(session: aiohttp.ClientSession, path: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Yield server-sent events: name and JSON (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    async with session.get(path, headers={"Accept": "text/event-stream"}, timeout=STREAM) as answer:
        answer.raise_for_status()
        name, lines = "message", list[str]()
        async for raw in answer.content:
            line = raw.decode().rstrip("\r\n")
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                lines.append(value)
            elif not line:
                if lines:
                    yield name, json.loads("\n".join(lines))
                name, lines = "message", []


async def _fetch(
    session: aiohttp.ClientSession, ends: Sequence[dict[str, Any]], *, film: bool, frames: int
) -> Developed:  # fmt: skip
    shots, end = [shot for each in ends for shot in each["pictures"]], ends[0]
    free = [shot for shot in shots if not shot["held"]]
    if shots and not free:
        raise Undeveloped("All of its pictures are held by the picture check.")
    walks = [each["walks"]["webp"] for each in ends if each["walks"]]
    filmed = walks[0] if walks else end["film"] if film else None
    pictures = [await _bytes(session, shot["url"]) for shot in free]
    return Developed(
        id=end["id"],
        seed=end["seed"],
        steps=end["steps"],
        sampler=end["sampler"],
        pictures=tuple(pictures),
        film=await _bytes(session, filmed) if filmed else None,
        frames=frames,
        seconds=sum(each["seconds"] or 0.0 for each in ends),
        ms_per_step=end["ms_per_step"] or 0.0,
    )


async def _bytes(session: aiohttp.ClientSession, path: str) -> bytes:
    try:
        async with session.get(path) as answer:
            answer.raise_for_status()
            return await answer.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Undeveloped(f"A finished picture could not be fetched: {str(error) or type(error).__name__}.") from error
