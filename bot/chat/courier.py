"""Brings what happens to jobs into their messages: one task for all of them, started before the bot.

It listens to the feed, asks the policy (`edits`) what to send now, composes it in a thread and hands it to the mail. A
trouble with one message stays with that message. Knows when and what to send; knows nothing of the discord library.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bot.chat import delivery, presenter
from bot.chat.cases import Case, Cases
from bot.chat.delivery import UPLOAD, Picture
from bot.chat.edits import Edit, Edits, Kind
from bot.chat.mail import Expired, Gone, Later, Mail, TooLarge, Where, bucket
from bot.chat.presenter import Card
from bot.feed import Developing, Moment, Queued, Settled
from bot.states import over
from bot.views import Place

if TYPE_CHECKING:
    from bot.desk import Desk

log = logging.getLogger(__name__)

Content = Moment
GRACE = 6.0  # seconds that an answer may take until its message id is known; then we look for it
NO_TOKEN = {"token_until": "0"}  # a new message belongs to no interaction
TRIES = 3  # of an unexpected error with one message
SWEEP = 60.0  # seconds between two looks for what was missed


class Courier:
    """`run` until cancelled, or until the feed closes."""

    def __init__(
        self,
        desk: Desk,
        mail: Mail,
        edits: Edits[Content] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.edits: Edits[Content] = edits or Edits()
        self._studio, self._deliveries = desk.studio, desk.deliveries
        self._mail = mail
        self._clock = clock
        self._wall = wall
        self._cases = Cases(desk, clock)
        self._given_up: set[str] = set()  # until the next start
        self._changed = asyncio.Event()

    @staticmethod
    def policy() -> Edits[Content]:
        """A policy of the kind that it asks."""
        return Edits()

    async def run(self) -> None:
        """Deliver what ended while nobody was here, then keep up with the feed."""
        await self._mail.ready()
        async with self._studio.feed.subscribe(previews=False) as moments, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._send_all(group)), group.create_task(self._sweep_all())]
            async for moment in moments:
                await self._take_in(moment)
            for task in tasks:
                task.cancel()

    async def _sweep_all(self) -> None:
        """Now, and again and again: what an outage of the store made us miss is not lost."""
        while True:
            try:
                await self._sweep()
            except Exception:
                log.exception("what is undelivered could not be read")
            await asyncio.sleep(SWEEP)

    async def _sweep(self) -> None:
        for view, place in await self._deliveries.owed("discord"):
            if view.id not in self._given_up:
                self._cases.open(view, place)
                if over(view.state):
                    self._offer("final", Settled(view.id, view.state, view.reason))

    async def _take_in(self, moment: Moment) -> None:
        try:
            case = await self._cases.find(moment.job)
        except Exception:
            log.exception("job %s: a moment of it was not taken in", moment.job)
            return
        if case is None:
            return
        if isinstance(moment, Developing):
            case.frames |= moment.frames
            case.fresh |= bool(moment.frames)
            self._offer("preview", moment, self._clock() + moment.seconds_left)
        else:
            self._offer("final" if isinstance(moment, Settled) else "place", moment)

    def _offer(self, kind: Kind, moment: Moment, due: float = math.inf) -> None:
        case = self._cases[moment.job]
        if case.lost and kind != "final":
            return
        where = bucket(case.place.where, self._wall())
        if self.edits.offer(Edit(moment.job, where, kind, moment, self._clock()), due):
            self._changed.set()

    async def _send_all(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._changed.clear()
            while edit := self.edits.take(self._clock()):
                group.create_task(self._send(edit))
            wake = self.edits.wake(self._clock())
            timeout = None if math.isinf(wake) else max(0.0, wake - self._clock())
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _send(self, edit: Edit[Content]) -> None:
        """One request, with whatever may become of it: no trouble with it reaches the other messages."""
        case = self._cases[edit.job]
        try:
            await self._attempt(edit, case)
        except Later as later:
            log.info("job %s: its message waits %.1f s: %s", edit.job, later.seconds, later)
            self._again(edit, case, later.seconds)
            if later.limited:
                self.edits.hold(edit.bucket, self._clock() + later.seconds)
        except Expired:
            await self._hand_over(edit, case)
        except Exception:
            self._stumble(edit, case)
        else:
            self._done(edit)
        self._changed.set()

    async def _attempt(self, edit: Edit[Content], case: Case) -> None:
        case.place = await self._deliveries.place_of(edit.job)
        try:
            await self._deliver(edit, case)
        except TooLarge as large:
            case.limit = min(case.limit, int(case.place.where.get("limit") or UPLOAD)) // 2
            raise Later(0.0, f"its picture is too large here: {large}") from large
        except Gone as gone:
            if edit.final and case.lost:  # neither the message nor its channel
                log.warning("job %s: it cannot be delivered: %s", edit.job, gone)
                await self._deliveries.delivered(edit.job)
                return
            log.warning("job %s: its message is gone: %s", edit.job, gone)
            case.lost = True
            if edit.final:
                raise Later(0.0, "it is posted anew") from gone

    async def _deliver(self, edit: Edit[Content], case: Case) -> None:
        if not case.place.where.get("message") and not case.lost:
            await self._find(edit.job, case)
        if edit.final:
            await self._finish(edit.job, case)
        elif not case.lost:
            card, picture = await self._progress(edit.content, case)
            await self._mail.edit(case.place.where, card, picture, self._wall())

    async def _finish(self, job: str, case: Case) -> None:
        """The last edit, then the note that it was made: a crash between the two makes the same edit once more."""
        where, case.view = case.place.where, await self._studio.view(job)
        limit = min(case.limit, int(where.get("limit") or UPLOAD))
        card, picture = await delivery.ending(self._studio, case.view, limit)
        if case.lost:
            await self._post_anew(job, where, card, picture)
        else:
            await self._mail.edit(where, card, picture, self._wall())
        await self._deliveries.delivered(job)

    async def _post_anew(self, job: str, where: Where, card: Card, picture: Picture | None) -> None:
        """A new message for a lost one, unless we posted it already and did not live to note it."""
        message = await self._mail.find(where, job, self._wall())
        if message is None:
            message = await self._mail.post(where, card, picture, job)
        else:
            await self._mail.edit({**where, "message": str(message)}, card, picture, self._wall())
        await self._deliveries.moved(job, message=str(message), **NO_TOKEN)

    async def _progress(self, moment: Content, case: Case) -> tuple[Card, Picture | None]:
        now = self._wall()
        if isinstance(moment, Queued):
            case.view = await self._studio.view(moment.job)
            return presenter.waiting(case.view, moment.place, moment.eta, now), None
        assert isinstance(moment, Developing)
        card = presenter.developing(case.view, moment.step, moment.of, moment.seconds_left, now)
        if not case.fresh:
            return card, None
        case.fresh = False
        return card, await delivery.preview(case.view, case.frames)

    async def _find(self, job: str, case: Case) -> None:
        """The message id is not known: the answer is still under way, or the bot died between answer and note."""
        if self._clock() - case.since < GRACE and case.view.created > self._wall() - 60:
            raise Later(0.3, "its first answer is still under way")
        found = await self._mail.find(case.place.where, job, self._wall())
        if found is None:
            case.lost = True
            return
        await self._deliveries.moved(job, message=str(found))
        case.place = await self._deliveries.place_of(job)

    async def _hand_over(self, edit: Edit[Content], case: Case) -> None:
        """The token died: from now on the message is edited as one of its channel, within the channel's budget."""
        case.place = Place("discord", {**case.place.where, **NO_TOKEN})
        self._again(edit, case, 0.0)
        self._offer(edit.kind, edit.content)
        try:
            await self._deliveries.moved(edit.job, **NO_TOKEN)
        except Exception:
            log.exception("job %s: that its token is dead was not noted", edit.job)

    def _done(self, edit: Edit[Content]) -> None:
        self.edits.sent(edit, self._clock())
        if edit.final:
            self._cases.close(edit.job)
            self.edits.drop(edit.job)

    def _again(self, edit: Edit[Content], case: Case, seconds: float) -> None:
        case.fresh = bool(case.frames)
        self.edits.failed(edit, self._clock(), seconds)

    def _stumble(self, edit: Edit[Content], case: Case) -> None:
        """An error that nobody foresaw. A final is tried again, at last by the next start."""
        log.exception("job %s: its message was not edited", edit.job)
        if edit.final and case.troubles < TRIES - 1:
            case.troubles += 1
            self._again(edit, case, 2.0**case.troubles)
            return
        if edit.final:
            self._given_up.add(edit.job)
        self._done(edit)
