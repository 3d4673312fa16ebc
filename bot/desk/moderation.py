"""Moderation: deleting a job's pictures, reporting one, and what moderators are told.

Knows who may, the store and the picture store; knows nothing of messages: a front end gets the places where a deleted
job is shown and takes it away there. Every method may raise `Refused` with one sentence.
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
    """`shown`: job → its places, for front ends to empty; the job itself first, then its enlargements.

    `films`: likewise the messages with their films.
    """

    job: str
    sentence: str
    shown: Mapping[str, Mapping[Role, Delivery]]
    films: Mapping[str, Sequence[Delivery]]


@dataclass(frozen=True)
class Report:
    """A member's report, for the channel that the server's admins chose. Its texts are members' own."""

    incident: int
    guild: str
    channel: str
    job: str
    author: str
    reporter: str
    reason: str


class Moderation:
    """Made by `bot.house`. `terms` are a member's, where they are.

    `post` is what a front end sets to put a report into its channel; it says whether it is there now.
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
        """Take a job's pictures away, with all enlargements of them; what still runs is cancelled. Twice is once."""
        record = await self._record(job)
        _permit("delete", member, record)
        ids = await self._store.ask(deleting.with_enlargements, job)
        shown = {one: await self._store.ask(places.deliveries, one) for one in ids}
        actor = (member.id, member.name)
        marked = await self._store.write(deleting.mark, ids, actor, self._clock())
        films = {one: await self._store.ask(places.films, one) for one in ids}  # after that no film is noted any more
        for one in marked:
            await self._stop(one)
        await self.empty(await self._store.ask(deleting.leftovers, marked))  # others' are the sweep's
        said = "Deleted. Its pictures are gone for good." if job in marked else DELETED
        return Deletion(job, said, shown, films)

    async def _stop(self, job: str) -> None:
        """Cancelled if it is not over; and whoever looks at it is told."""
        record = await self._record(job)
        if not over(record.state):
            await self._cancelling.cancel(job)
        else:
            self._feed.publish(Settled(job, record.state, DELETED))

    async def sweep(self) -> None:
        """Remove the files of deleted jobs that no other job has. What cannot be removed now is left for later."""
        await self.empty(await self._store.ask(deleting.leftovers))

    async def keep_clean(self) -> None:
        """Sweep now and then, until cancelled: a crash or an outage may have left something."""
        while True:
            try:
                await self.sweep()
            except Unavailable as error:
                log.warning("sweep: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def report(self, job: str, member: Member, reason: str) -> str:
        """Tell the moderators of a picture, once for each member and job; says where the report went."""
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
        """True if it is in the moderators' channel. It is in their list whatever happens here."""
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
        """The newest of the member's server first; with `waiting` those that nobody has decided. For moderators."""
        _permit("settings", member)
        return await self._store.ask(incidents.newest, member.guild, limit, waiting=waiting)

    async def close(self, number: int, member: Member) -> Incident:
        """An incident that needs nobody any more. For moderators."""
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
        """Also one that was deleted."""
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
