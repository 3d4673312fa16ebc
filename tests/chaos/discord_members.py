"""Members of several guilds who type `/imagine` on the loopback Discord, and the final messages there.

A job counts as promised once its answer is in the channel. Knows the loopback, but not the bot.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chaos.evidence import Wish
from chaos.timeline import Promises
from loopback.members import Person
from loopback.server import Loopback

if TYPE_CHECKING:
    from simcord.backend.models import Message

JOB = re.compile(r"(?:cancel|reroll|delete|remix):([0-9A-HJKMNP-TV-Z]{26})")
FINAL = re.compile(r"darkroom-([0-9A-HJKMNP-TV-Z]{26})\.")
PATIENCE = 3.0  # seconds that Discord gives a bot for its first answer


class Speakers:
    """Members in several guilds, each with a channel of their own."""

    def __init__(
        self, loopback: Loopback, guilds: int, people: int, model: str, wishes: Sequence[Wish], promises: Promises,
        chance: random.Random,
    ) -> None:  # fmt: skip
        self.loopback, self.model, self.wishes = loopback, model, wishes
        self.promises, self.chance, self.asking, self.asked = promises, chance, True, 0
        servers = [loopback.world.create_guild(f"guild {number}") for number in range(guilds)]
        self.people = [Person(loopback, f"speaker {n}", servers[n % guilds]) for n in range(people)]
        self.channels = [servers[n % guilds].create_text_channel(f"pictures-{n}") for n in range(people)]

    async def live(self, pause: float) -> None:
        """Sends commands of random members until `asking` is False."""
        while self.asking:
            number = self.chance.randrange(len(self.people))
            await self._send_command(self.people[number], self.channels[number])
            await asyncio.sleep(self.chance.expovariate(1 / pause))

    async def _send_command(self, person: Person, channel: Any) -> None:
        if not self.loopback.world.backend.commands or not self.loopback.gateway.ready():
            return  # the bot is offline, and Discord shows no commands
        wish = self.chance.choice(list(self.wishes))
        flags = f"--steps {wish.steps} --count {wish.count} --seed {wish.seed} --model {self.model}"
        self.asked += 1
        act = await person.slash(channel, "imagine", prompt=f"{wish.prompt} {flags}")
        for _ in range(int(PATIENCE / 0.1)):
            if act.message and (found := _job_of(act.message)):
                self.promises.keep(found, wish, "discord")
                return
            await asyncio.sleep(0.1)

    def posted(self) -> Counter[str]:
        """Job → how many messages in the channels show its finished picture."""
        found: Counter[str] = Counter()
        for channel in self.loopback.world.backend.messages:
            for message in self.loopback.world.messages(channel):
                found.update(match[1] for one in message.attachments if (match := FINAL.match(one["filename"])))
        return found


def _job_of(message: Message) -> str | None:
    """The job of a message's buttons."""
    found = JOB.search(repr(message.components))
    return found[1] if found else None
