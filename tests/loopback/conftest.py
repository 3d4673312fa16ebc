"""One loopback Discord and one bot process for all tests of a file; each test has its own channel and members.

At the end of each file every request of the bot must have matched Discord's OpenAPI description.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tools.loopback.bot_process import Bot, run_bot
from tools.loopback.known_deviations import find_unexplained
from tools.loopback.members import Act, Person
from tools.loopback.server import Loopback, wait_until
from tools.painter import PaintingWorker

if TYPE_CHECKING:
    from simcord.backend.models import Message
    from simcord.builders import ChannelHandle, GuildHandle

ANSWER_TIMEOUT = 20.0  # seconds for a first answer: the bot is not to blame for a busy machine
NUMBERS = itertools.count(1)


@dataclass
class LoopbackHarness:
    """The loopback, the bot on it, its worker, and one server."""

    loopback: Loopback
    bot: Bot
    painter: PaintingWorker
    guild: GuildHandle


@dataclass
class Scene:
    """A new channel for one test, and a new member in it."""

    harness: LoopbackHarness
    channel: ChannelHandle
    alice: Person
    acts: list[Act] = field(default_factory=list)

    @property
    def loopback(self) -> Loopback:
        return self.harness.loopback

    def person(self, name: str, **fields: Any) -> Person:
        return Person(self.loopback, name, self.harness.guild, answer_timeout=ANSWER_TIMEOUT, **fields)

    async def imagine(self, prompt: str = "red apple", **options: Any) -> Act:
        """Alice asks for a picture; returns once the bot has answered."""
        act = await self.alice.slash(self.channel, "imagine", prompt=prompt, **options)
        self.acts.append(act)
        await act.wait_for_message()
        return act

    def resume_jobs(self) -> None:
        """Resumes all paused jobs; no later job pauses."""
        self.harness.painter.pause_step = None
        self.harness.painter.step_gate.set()

    def list_finals(self, channel: int | None = None) -> list[Message]:
        """The messages of the channel that show a finished picture."""
        return [one for one in self.loopback.world.list_messages(channel or self.channel.id) if is_final(one)]

    async def wait_for_finals(self, *acts: Act, channel: int | None = None, seconds: float = 60.0) -> list[Message]:
        """Waits for one final for each of `acts`, or for each of Alice's commands; returns the channel's finals."""
        wanted_count = len(acts or self.acts)
        return await wait_until(lambda: len(finals := self.list_finals(channel)) >= wanted_count and finals, seconds)


def is_final(message: Message) -> bool:
    return any(each["filename"].startswith("darkroom-") for each in message.attachments)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def harness(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LoopbackHarness]:
    loopback = Loopback()
    guild = loopback.world.create_guild()
    guild.create_text_channel("pictures")
    async with loopback.open(), run_bot(loopback, tmp_path_factory.mktemp("bot")) as (bot, painter):
        yield LoopbackHarness(loopback, bot, painter, guild)
    assert [str(each) for each in find_unexplained(loopback.judge.findings)] == []
    assert loopback.gaps == []


@pytest.fixture
def scene(harness: LoopbackHarness) -> Iterator[Scene]:
    """Makes a new channel and member. Afterwards speed, faults and limits are back to normal."""
    number = next(NUMBERS)
    channel = harness.guild.create_text_channel(f"pictures-{number}")
    new_scene = Scene(
        harness, channel, Person(harness.loopback, f"alice{number}", harness.guild, answer_timeout=ANSWER_TIMEOUT)
    )
    yield new_scene
    new_scene.resume_jobs()
    harness.painter.speed = 0.01
    harness.loopback.faults.clear()
    harness.loopback.rules.max_file_bytes = None
