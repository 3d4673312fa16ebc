"""The bot is killed at points of a job's life, and comes back: nothing is lost, and nothing is posted twice.

A trap waits for a request of a kind and kills the bot's process when it arrives, once it took effect, or a moment after
it was answered. What the bot does between two requests (notes in its store) lies between two such moments.
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

from loopback.asked import Asked
from loopback.bot import ROOT, Bot, running
from loopback.people import Person
from loopback.server import Loopback, until
from painter import Painter

if TYPE_CHECKING:
    from simcord.backend.models import Message
    from simcord.builders import GuildHandle

Moment = Literal["arrives", "took effect", "was answered", "was noted"]
Kind = Literal["answer", "preview", "final", "notice", "collapse", "open direct", "direct", "none"]
NOTED = 0.03  # seconds after an answer: by then the bot has written it down
WITHIN = 90.0  # seconds for a picture to arrive, with the bot's start
AWAY, TALK = 600.0, 60  # seconds that a bot is down in a busy channel, and what others write meanwhile
AFTERWARDS = 2.0  # seconds in which a second one would come


@dataclass(frozen=True)
class Point:
    """When to kill: at the first request of a kind. `busy`: the bot is away for long, and the channel talks on."""

    kind: Kind
    moment: Moment
    busy: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.moment}{', then a long time in a busy channel' if self.busy else ''}"


def _points(kind: Kind, *moments: Moment) -> list[Point]:
    return [Point(kind, moment) for moment in moments]


POINTS = (
    *_points("answer", "arrives", "took effect", "was answered", "was noted"),
    *_points("preview", "arrives", "took effect", "was noted"),
    *_points("final", "arrives", "took effect", "was answered", "was noted"),
    *_points("notice", "arrives", "took effect", "was answered", "was noted"),
    *_points("collapse", "took effect", "was noted"),
    *_points("open direct", "took effect"),
    *_points("direct", "took effect", "was noted"),
    Point("notice", "took effect", busy=True),
)
FEW = tuple(
    each
    for each in POINTS
    if not each.busy and each.moment == "took effect" and each.kind in ("answer", "final", "notice")
)


@dataclass(frozen=True)
class Outcome:
    """What became of one job: how many pictures of it there are, and how many there should be."""

    point: Point
    shown: int
    direct: int
    wanted: int  # direct messages

    @property
    def lost(self) -> bool:
        return self.shown < 1 or self.direct < self.wanted

    @property
    def twice(self) -> bool:
        return self.shown > 1 or self.direct > self.wanted


class Trapped(Loopback):
    """A loopback that can kill the bot before it."""

    def __init__(self) -> None:
        super().__init__()
        self.point: Point | None = None
        self.kill: Callable[[], None] = lambda: None
        self.sprung = asyncio.Event()

    def _judged(self, request: web.Request, asked: Asked, headers: dict[str, str]) -> web.Response:
        point = self.point
        if point is None or self._kind(asked) != point.kind:
            return super()._judged(request, asked, headers)
        self.point = None
        if point.moment == "arrives":
            return self._spring()
        response = super()._judged(request, asked, headers)
        if point.moment == "took effect":
            return self._spring()
        later = 0.001 if point.moment == "was answered" else NOTED
        asyncio.get_running_loop().call_later(later, self._spring)
        return response

    def _spring(self) -> web.Response:
        self.kill()
        self.sprung.set()
        return web.Response(status=500)

    def _kind(self, asked: Asked) -> Kind:
        name = asked.files[0].filename if asked.files else ""
        if name == "developing.jpg":
            return "preview"
        if asked.method == "PATCH":
            emptied = isinstance(asked.body, dict) and asked.body.get("attachments") == []
            return "final" if name else ("collapse" if emptied else "none")
        if asked.path == "/users/@me/channels":
            return "open direct"
        if asked.path.endswith("/callback") and asked.body["type"] == 4:
            return "answer"
        if match := re.fullmatch(r"/channels/(\d+)/messages", asked.path):
            return "direct" if self.world.backend.get_channel(int(match[1])).guild_id is None else "notice"
        return "none"


async def kills(folder: Path, points: tuple[Point, ...], say: Callable[[str], None]) -> list[Outcome]:
    """A job for each point, one after another; the bot is up again before the next one."""
    loopback = Trapped()
    short, long = (loopback.world.create_guild(name) for name in ("short", "long"))
    async with loopback.open(), running(loopback, folder) as (bot, painter):
        await _rule(bot, long)
        painter.speed = 0.08  # a job of 1.6 s, with previews
        found = []
        for number, point in enumerate(points):
            guild = long if point.kind in ("notice", "collapse") else short
            found.append(await _killed(loopback, bot, painter, Person(loopback, f"m{number}", guild), guild, point))
            say(f"{point}: {found[-1].shown} shown, {found[-1].direct} direct")
        return found


async def _rule(bot: Bot, guild: GuildHandle) -> None:
    """In this server every end is told by a new message."""
    command = [sys.executable, "-m", "bot", "rules", "set", "long_ping", "0"]
    command += ["--guild", f"discord:{guild.id}", "--data", str(bot.folder)]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


async def _killed(
    loopback: Trapped, bot: Bot, painter: Painter, member: Person, guild: GuildHandle, point: Point
) -> Outcome:
    channel = guild.create_text_channel(f"pictures-{member.id}")
    wanted = int(point.kind in ("direct", "open direct"))
    if wanted:
        await (await member.slash(channel, "prefer set", name="direct", value="on")).taken()
    loopback.sprung.clear()
    loopback.kill = bot.process.kill if bot.process else loopback.kill
    loopback.point = point
    await member.slash(channel, "imagine", prompt="red apple")
    await asyncio.wait_for(loopback.sprung.wait(), WITHIN)
    assert bot.process
    await bot.process.wait()
    if point.busy:
        for number in range(TALK):
            await member.say(channel, f"nice picture {number}")
        loopback.world.later(AWAY)  # no nonce is known any more
    await bot.start()

    def seen() -> Outcome:
        letters = loopback.world.messages(member.dm) if wanted else []
        return Outcome(point, _pictures(loopback.world.messages(channel.id)), _pictures(letters), wanted)

    try:
        await until(lambda: not seen().lost, WITHIN)
    except AssertionError:
        return seen()
    await asyncio.sleep(AFTERWARDS)
    return seen()


def _pictures(messages: list[Message]) -> int:
    return sum(each["filename"].startswith("darkroom-") for one in messages for each in one.attachments)
