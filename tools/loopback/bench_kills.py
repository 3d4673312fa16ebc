"""Kills the bot at points of a job's life and restarts it: nothing is lost, and nothing is posted twice.

The server waits for a request of a kind. It kills the bot's process when the request arrives, once it took effect, or
a moment after the answer. The bot's writes to its store lie between two such moments.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from tools.loopback.bot_process import ROOT, Bot, run_bot
from tools.loopback.members import Person
from tools.loopback.recorded_request import RecordedRequest
from tools.loopback.server import Loopback, wait_until
from tools.painter import PaintingWorker

if TYPE_CHECKING:
    from simcord.backend.models import Message
    from simcord.builders import GuildHandle

Moment = Literal["arrives", "took effect", "was answered", "was noted"]
Kind = Literal["answer", "preview", "final", "notice", "collapse", "open direct", "direct", "none"]
STORE_DELAY = 0.03  # seconds after an answer: by then the bot has stored it
PICTURE_TIMEOUT = 90.0  # seconds for a picture to arrive, the bot's start included
# seconds that the bot is down in a busy channel, and messages written meanwhile
DOWNTIME = 600.0
OTHER_MESSAGES = 60
DUPLICATE_WAIT = 2.0  # seconds in which a duplicate would arrive


@dataclass(frozen=True)
class KillPoint:
    """When to kill: at the first request of a kind. `is_busy`: down for long in a channel where others write."""

    kind: Kind
    moment: Moment
    is_busy: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.moment}{', then a long time in a busy channel' if self.is_busy else ''}"


def _points(kind: Kind, *moments: Moment) -> list[KillPoint]:
    return [KillPoint(kind, moment) for moment in moments]


POINTS = (
    *_points("answer", "arrives", "took effect", "was answered", "was noted"),
    *_points("preview", "arrives", "took effect", "was noted"),
    *_points("final", "arrives", "took effect", "was answered", "was noted"),
    *_points("notice", "arrives", "took effect", "was answered", "was noted"),
    *_points("collapse", "took effect", "was noted"),
    *_points("open direct", "took effect"),
    *_points("direct", "took effect", "was noted"),
    KillPoint("notice", "took effect", is_busy=True),
)
QUICK_POINTS = tuple(
    each
    for each in POINTS
    if not each.is_busy and each.moment == "took effect" and each.kind in ("answer", "final", "notice")
)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job: how many pictures it has, and how many it should have."""

    point: KillPoint
    shown_count: int
    direct_count: int
    wanted_direct_count: int  # direct messages

    @property
    def is_lost(self) -> bool:
        return self.shown_count < 1 or self.direct_count < self.wanted_direct_count

    @property
    def is_duplicated(self) -> bool:
        return self.shown_count > 1 or self.direct_count > self.wanted_direct_count


class KillingLoopback(Loopback):
    """A loopback Discord that can kill its bot."""

    def __init__(self) -> None:
        super().__init__()
        self.point: KillPoint | None = None
        self.kill: Callable[[], None] = lambda: None
        self.was_killed = asyncio.Event()

    def _check_and_carry_out(
        self, request: web.Request, call: RecordedRequest, headers: dict[str, str]
    ) -> web.Response:
        point = self.point
        if point is None or self._request_kind(call) != point.kind:
            return super()._check_and_carry_out(request, call, headers)
        self.point = None
        if point.moment == "arrives":
            return self._kill_bot()
        response = super()._check_and_carry_out(request, call, headers)
        if point.moment == "took effect":
            return self._kill_bot()
        delay = 0.001 if point.moment == "was answered" else STORE_DELAY
        asyncio.get_running_loop().call_later(delay, self._kill_bot)
        return response

    def _kill_bot(self) -> web.Response:
        self.kill()
        self.was_killed.set()
        return web.Response(status=500)

    def _request_kind(self, call: RecordedRequest) -> Kind:
        name = call.files[0].filename if call.files else ""
        if name == "developing.jpg":
            return "preview"
        if call.method == "PATCH":
            clears_attachments = isinstance(call.body, dict) and call.body.get("attachments") == []
            return "final" if name else ("collapse" if clears_attachments else "none")
        if call.path == "/users/@me/channels":
            return "open direct"
        if call.path.endswith("/callback") and call.body["type"] == 4:
            return "answer"
        if match := re.fullmatch(r"/channels/(\d+)/messages", call.path):
            return "direct" if self.world.backend.get_channel(int(match[1])).guild_id is None else "notice"
        return "none"


async def run_kills(folder: Path, points: tuple[KillPoint, ...], report: Callable[[str], None]) -> list[Outcome]:
    """Runs one job for each point, one after another. The bot is up again before the next job."""
    loopback = KillingLoopback()
    short_guild, long_guild = (loopback.world.create_guild(name) for name in ("short", "long"))
    async with loopback.open(), run_bot(loopback, folder) as (bot, painter):
        await _announce_every_end(bot, long_guild)
        painter.speed = 0.08  # a job of 1.6 s, with previews
        outcomes = []
        for number, point in enumerate(points):
            guild = long_guild if point.kind in ("notice", "collapse") else short_guild
            outcomes.append(
                await _run_point(loopback, bot, painter, Person(loopback, f"m{number}", guild), guild, point)
            )
            report(f"{point}: {outcomes[-1].shown_count} shown, {outcomes[-1].direct_count} direct")
        return outcomes


async def _announce_every_end(bot: Bot, guild: GuildHandle) -> None:
    """In this server the bot announces every job's end with a new message."""
    command = [sys.executable, "-m", "bot", "rules", "set", "long_ping", "0"]
    command += ["--guild", f"discord:{guild.id}", "--data", str(bot.folder)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


async def _run_point(
    loopback: KillingLoopback, bot: Bot, painter: PaintingWorker, member: Person, guild: GuildHandle, point: KillPoint
) -> Outcome:
    channel = guild.create_text_channel(f"pictures-{member.id}")
    wanted_direct_count = int(point.kind in ("direct", "open direct"))
    if wanted_direct_count:
        await (await member.slash(channel, "prefer set", name="direct", value="on")).wait_for_response()
    loopback.was_killed.clear()
    loopback.kill = bot.process.kill if bot.process else loopback.kill
    loopback.point = point
    await member.slash(channel, "imagine", prompt="red apple")
    await asyncio.wait_for(loopback.was_killed.wait(), PICTURE_TIMEOUT)
    assert bot.process
    await bot.process.wait()
    if point.is_busy:
        for number in range(OTHER_MESSAGES):
            await member.send(channel, f"nice picture {number}")
        loopback.world.advance_clock_by(DOWNTIME)  # all nonces are forgotten
    await bot.start()

    def count_now() -> Outcome:
        direct = loopback.world.list_messages(member.dm) if wanted_direct_count else []
        return Outcome(
            point, _pictures_in(loopback.world.list_messages(channel.id)), _pictures_in(direct), wanted_direct_count
        )

    try:
        await wait_until(lambda: not count_now().is_lost, PICTURE_TIMEOUT)
    except AssertionError:
        return count_now()
    await asyncio.sleep(DUPLICATE_WAIT)
    return count_now()


def _pictures_in(messages: list[Message]) -> int:
    return sum(each["filename"].startswith("darkroom-") for one in messages for each in one.attachments)
