"""Members of several guilds who type `/imagine` on the loopback Discord, and the final messages there.

A job counts as accepted once its answer is in the channel. Knows the loopback, but not the bot.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tools.chaos.evidence import JobSpec
from tools.chaos.timeline import AcceptedLog
from tools.loopback.members import Person
from tools.loopback.server import Loopback

if TYPE_CHECKING:
    from simcord.backend.models import Message

JOB = re.compile(r"(?:cancel|reroll|delete|remix):([0-9A-HJKMNP-TV-Z]{26})")
FINAL = re.compile(r"darkroom-([0-9A-HJKMNP-TV-Z]{26})\.")
ANSWER_TIMEOUT = 3.0  # seconds that Discord gives a bot for its first answer


class DiscordMembers:
    """Members in several guilds, each with a channel of their own."""

    def __init__(
        self,
        loopback: Loopback,
        guilds: int,
        people: int,
        model: str,
        specs: Sequence[JobSpec],
        accepted_log: AcceptedLog,
        rng: random.Random,
    ) -> None:
        self.loopback = loopback
        self.model = model
        self.specs = specs
        self.accepted_log = accepted_log
        self.rng = rng
        self.is_requesting = True
        self.request_count = 0
        servers = [loopback.world.create_guild(f"guild {number}") for number in range(guilds)]
        self.people = [Person(loopback, f"speaker {n}", servers[n % guilds]) for n in range(people)]
        self.channels = [servers[n % guilds].create_text_channel(f"pictures-{n}") for n in range(people)]

    async def run(self, pause: float) -> None:
        """Sends commands of random members until `is_requesting` is False."""
        while self.is_requesting:
            number = self.rng.randrange(len(self.people))
            await self._send_command(self.people[number], self.channels[number])
            await asyncio.sleep(self.rng.expovariate(1 / pause))

    async def _send_command(self, person: Person, channel: Any) -> None:
        if not self.loopback.world.backend.commands or not self.loopback.gateway.has_all_shards():
            return  # the bot is offline, and Discord shows no commands
        spec = self.rng.choice(list(self.specs))
        flags = f"--steps {spec.steps} --count {spec.count} --seed {spec.seed} --model {self.model}"
        self.request_count += 1
        act = await person.slash(channel, "imagine", prompt=f"{spec.prompt} {flags}")
        for _ in range(int(ANSWER_TIMEOUT / 0.1)):
            if act.message and (job := _job_of(act.message)):
                self.accepted_log.record(job, spec, "discord")
                return
            await asyncio.sleep(0.1)

    def count_posted(self) -> Counter[str]:
        """Job → how many messages in the channels show its finished picture."""
        counts: Counter[str] = Counter()
        for channel in self.loopback.world.backend.messages:
            for message in self.loopback.world.list_messages(channel):
                counts.update(match[1] for one in message.attachments if (match := FINAL.match(one["filename"])))
        return counts


def _job_of(message: Message) -> str | None:
    """The job of a message's buttons."""
    match = JOB.search(repr(message.components))
    return match[1] if match else None
