"""Moderation: deletes a job's pictures, takes reports, and lists incidents.

It returns the messages that show a deleted job; a front end removes the pictures there. Every method may raise
`Refused`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from bot.access import Action, Subject, forbidden
from bot.desk.absent import absent
from bot.desk.emptying import Emptying
from bot.feed import Feed, Settled
from bot.images.pictures import Pictures
from bot.incidents import Incident
from bot.queue.cancelling import Cancelling
from bot.refused import Refused
from bot.rules import Terms
from bot.sentences import DELETED, plain
from bot.states import over
from bot.store import Record, Store, Unavailable, deleting, incidents, places
from bot.views import Delivery, Member, Role

log = logging.getLogger(__name__)

REASON = 500  # characters of a report
SHOWN = 20  # incidents
SWEEP_SECONDS = 600.0


@dataclass(frozen=True)
class Deletion:
    """A deletion. `shown`: job → its destinations, for front ends to empty; the job itself first, then its upscales.

    `films`: likewise the messages with their films.
    """

    job: str
    sentence: str
    shown: Mapping[str, Mapping[Role, Delivery]]
    films: Mapping[str, Sequence[Delivery]]


@dataclass(frozen=True)
class Report:
    """A member's report, for the channel that the server's admins chose. Its texts come from members."""

    incident: int
    guild: str
    channel: str
    job: str
    author: str
    reporter: str
    reason: str


class Moderation:
    """The use cases. `terms` returns a member's effective rules where they are.

    A front end sets `post` to put a report into its channel; it returns whether the report is there now.
    """

    def __init__(
        self, store: Store, pictures: Pictures, cancelling: Cancelling, feed: Feed,
        terms: Callable[[Member], Awaitable[Terms]], *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._store, self._cancelling, self._feed = store, cancelling, feed
        self.empty = Emptying(store, pictures)
        self._terms, self._clock = terms, clock
        self.post: Callable[[Report], Awaitable[bool]] | None = None

    async def delete(self, job: str, member: Member) -> Deletion:
        """Delete a job's pictures and all upscales of them; cancel what still runs. Idempotent."""
        record = await self._record(job)
        _permit("delete", member, record)
        ids = await self._store.ask(deleting.with_enlargements, job)
        shown = {one: await self._store.ask(places.deliveries, one) for one in ids}
        actor = (member.id, member.name)
        marked = await self._store.write(deleting.mark, ids, actor, self._clock())
        films = {one: await self._store.ask(places.films, one) for one in ids}  # no film is noted after the mark
        for one in marked:
            await self._stop(one)
        await self.empty(await self._store.ask(deleting.leftovers, marked))  # the sweep removes those of others
        said = "Deleted. Its pictures are gone for good." if job in marked else DELETED
        return Deletion(job, said, shown, films)

    async def _stop(self, job: str) -> None:
        """Cancel a job that has not ended; tell subscribers about one that has."""
        record = await self._record(job)
        if not over(record.state):
            await self._cancelling.cancel(job)
        else:
            self._feed.publish(Settled(job, record.state, DELETED))

    async def sweep(self) -> None:
        """Remove the files of deleted jobs that no other job shares. A later sweep retries failures."""
        await self.empty(await self._store.ask(deleting.leftovers))

    async def keep_clean(self) -> None:
        """Sweep periodically until cancelled: a crash or an outage may have left files."""
        while True:
            try:
                await self.sweep()
            except Unavailable as error:
                log.warning("sweep: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def report(self, job: str, member: Member, reason: str) -> str:
        """Report a picture to the moderators, once for each member and job; say where the report went."""
        record = await self._record(job)
        _permit("report", member, record)
        if record.deleted is not None:
            raise Refused(DELETED, 404)
        said = plain(reason)
        if not said:
            raise Refused("Say in a few words what is wrong with it.")
        if len(said) > REASON:
            raise Refused(f"A report has at most {REASON} characters; this one has {len(said)}.")
        noted = (record.guild, member.id, member.name, said, self._clock(), job)
        number = await self._store.write(incidents.report, *noted)
        if await self._posted(record, member, number, said):
            return "Reported: the moderators of this server see it in their channel. Thank you."
        return "Reported: it stands in the list of the moderators of this server. Thank you."

    async def _posted(self, record: Record, member: Member, number: int, said: str) -> bool:
        """Post the report into the moderators' channel; return whether it is there. Their list has it in any case."""
        channel = (await self._terms(member)).reports
        if not channel or self.post is None:
            return False
        one = Report(number, record.guild, channel, record.id, record.member_name, member.name, said)
        try:
            return await self.post(one)
        except Exception:
            log.exception("report %d: it could not be put into its channel", number)
            return False

    async def incidents(self, member: Member, limit: int = SHOWN, *, waiting: bool = False) -> list[Incident]:
        """Return the newest incidents of the member's server; with `waiting` only undecided ones. For moderators."""
        _permit("settings", member)
        return await self._store.ask(incidents.newest, member.guild, limit, waiting=waiting)

    async def close(self, number: int, member: Member) -> Incident:
        """Close an incident. For moderators."""
        _permit("dismiss", member)
        actor = (member.id, member.name)
        return await self._store.write(incidents.close, member.guild, number, actor, self._clock())

    async def barred(self, whom: str, member: Member, reason: str) -> None:
        """Note that `member` blocked `whom` (a name), and why; the block itself is a rule of `Administration`."""
        _permit("set", member)
        said = f"{whom}: {plain(reason)}" if plain(reason) else whom
        noted = (member.guild, "barred", member.id, member.name, said, self._clock())
        await self._store.write(incidents.note, *noted)

    async def _record(self, job: str) -> Record:
        """Return a job's row, deleted or not."""
        record = await self._store.record(job)
        if record is None:
            raise await absent(self._store, job)
        return record


def _permit(action: Action, member: Member, record: Record | None = None) -> None:
    subject = None
    if record is not None:
        subject = Subject(record.member, record.member_name, record.guild, record.private)
    if reason := forbidden(action, member, subject):
        raise Refused(reason, 403)
