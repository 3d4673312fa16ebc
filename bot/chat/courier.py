"""Brings what happens to jobs into their messages: one task for all of them, started before the bot.

It listens to the feed, asks the policy (`edits`) what to send now, composes it in a thread and hands it to the mail. A
trouble with one message stays with that message. Knows when and what to send; knows nothing of the discord library.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bot.chat import delivery, presenter
from bot.chat.delivery import UPLOAD, Picture
from bot.chat.edits import Edit, Edits, Kind
from bot.chat.mail import Gone, Later, Mail, TooLarge, bucket
from bot.feed import Developing, Moment, Queued, Settled, Subscription
from bot.refused import Refused
from bot.states import over
from bot.views import Place, View

if TYPE_CHECKING:
    from bot.studio import Studio

log = logging.getLogger(__name__)

Content = Moment
GRACE = 6.0  # seconds that an answer may take until its message id is known; then we look for it
NO_TOKEN = {"token_until": "0"}  # a new message belongs to no interaction
TRIES = 3  # of an unexpected error with one message
STRANGERS = 4096  # jobs of other front ends that we remember not to ask about again


@dataclass
class _Case:
    """A job whose message we keep up to date."""

    view: View
    place: Place
    since: float
    watch: Subscription | None = None
    frames: dict[int, bytes] = field(default_factory=dict)
    fresh: bool = False  # frames came that were not yet shown
    lost: bool = False  # the message is gone: no previews, the final goes into a new one
    limit: int = 1 << 30  # bytes that Discord turned out to take
    troubles: int = 0


class Courier:
    """`run` until cancelled."""

    def __init__(
        self,
        studio: Studio,
        mail: Mail,
        edits: Edits[Content] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.edits: Edits[Content] = edits or Edits()
        self._studio = studio
        self._mail = mail
        self._clock = clock
        self._wall = wall
        self._cases: dict[str, _Case] = {}
        self._strangers: OrderedDict[str, None] = OrderedDict()
        self._changed = asyncio.Event()

    @staticmethod
    def policy() -> Edits[Content]:
        """A policy of the kind that it asks."""
        return Edits()

    async def run(self) -> None:
        """Deliver what ended while nobody was here, then keep up with the feed."""
        await self._mail.ready()
        async with self._studio.feed.subscribe(previews=False) as moments, asyncio.TaskGroup() as group:
            sender = group.create_task(self._send_all(group))
            await self._sweep()
            async for moment in moments:
                await self._take_in(moment)
            sender.cancel()

    async def _sweep(self) -> None:
        for view, place in await self._studio.undelivered("discord"):
            self._open(view, place)
            if over(view.state):
                self._offer("final", Settled(view.id, view.state, view.reason))

    async def _take_in(self, moment: Moment) -> None:
        try:
            case = await self._case(moment.job)
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

    async def _case(self, job: str) -> _Case | None:
        """The job's case; None if another front end shows it."""
        if job in self._cases or job in self._strangers:
            return self._cases.get(job)
        try:
            place = await self._studio.place_of(job)
        except Refused:
            place = None
        if place is not None and place.kind == "discord":
            return self._open(await self._studio.view(job), place)
        self._strangers[job] = None
        if len(self._strangers) > STRANGERS:
            self._strangers.popitem(last=False)
        return None

    def _open(self, view: View, place: Place) -> _Case:
        watch = self._studio.feed.subscribe(view.id)  # asks the workers for frames; we read them in `run`
        case = self._cases[view.id] = _Case(view, place, self._clock(), watch)
        return case

    def _close(self, job: str) -> None:
        case = self._cases.pop(job, None)
        if case and case.watch:
            case.watch.close()
        self._strangers[job] = None  # late frames open no new case

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
        """One request, with whatever may become of it."""
        case = self._cases[edit.job]
        try:
            case.place = await self._studio.place_of(edit.job)
            await self._deliver(edit, case)
        except Later as later:
            log.info("job %s: its message waits %.1f s: %s", edit.job, later.seconds, later)
            self._again(edit, later.seconds, later.limited)
        except TooLarge as large:
            log.info("job %s: its picture is too large here: %s", edit.job, large)
            case.limit = min(case.limit, int(case.place.where.get("limit") or UPLOAD)) // 2
            self._again(edit, 0.0, False)
        except Gone as gone:
            log.warning("job %s: its message is gone: %s", edit.job, gone)
            await self._lose(edit, case, gone)
        except Exception:
            await self._stumble(edit, case)
        else:
            self.edits.sent(edit, self._clock())
            if edit.kind == "final":
                self._close(edit.job)
        self._changed.set()

    async def _deliver(self, edit: Edit[Content], case: _Case) -> None:
        if not case.place.where.get("message") and not case.lost:
            await self._find(edit.job, case)
        if edit.kind == "final":
            await self._finish(edit.job, case)
        elif not case.lost:
            card, picture = await self._progress(edit.content, case)
            await self._mail.edit(case.place.where, card, picture, self._wall())

    async def _finish(self, job: str, case: _Case) -> None:
        """The last edit, then the note that it was made: a crash between the two makes the same edit once more."""
        where, case.view = case.place.where, await self._studio.view(job)
        limit = min(case.limit, int(where.get("limit") or UPLOAD))
        card, picture = presenter.ended(case.view), await delivery.final(self._studio, case.view, limit)
        if case.view.state == "finished" and picture is None:
            card = presenter.unshown(card)
        if case.lost:
            message = await self._mail.post(where, card, picture, job)
            await self._studio.moved(job, message=str(message), **NO_TOKEN)
        else:
            await self._mail.edit(where, card, picture, self._wall())
        await self._studio.delivered(job)

    async def _progress(self, moment: Content, case: _Case) -> tuple[presenter.Card, Picture | None]:
        now = self._wall()
        if isinstance(moment, Queued):
            return presenter.waiting(case.view, moment.place, moment.eta, now), None
        assert isinstance(moment, Developing)
        card = presenter.developing(case.view, moment.step, moment.of, moment.seconds_left, now)
        if not case.fresh:
            return card, None
        case.fresh = False
        return card, await delivery.preview(case.view, case.frames)

    async def _find(self, job: str, case: _Case) -> None:
        """The message id is not known: the answer is still under way, or the bot died between answer and note."""
        if self._clock() - case.since < GRACE and case.view.created > self._wall() - 60:
            raise Later(0.3, "its first answer is still under way")
        found = await self._mail.find(case.place.where, job, self._wall())
        if found is None:
            case.lost = True
            return
        await self._studio.moved(job, message=str(found))
        case.place = await self._studio.place_of(job)

    async def _lose(self, edit: Edit[Content], case: _Case, gone: Gone) -> None:
        """The message vanished: no more previews; the final is posted anew, and if that fails too, given up."""
        if edit.kind != "final" or not case.lost:
            case.lost = True
            self.edits.failed(edit, self._clock())  # a preview among them finds the case lost, and ends there
            return
        log.warning("job %s: it cannot be delivered: %s", edit.job, gone)
        self.edits.sent(edit, self._clock())
        await self._studio.delivered(edit.job)
        self._close(edit.job)

    async def _stumble(self, edit: Edit[Content], case: _Case) -> None:
        """An error that nobody foresaw: contained here. A final is tried again, at last by the next start's sweep."""
        case.troubles += edit.kind == "final"
        log.exception("job %s: its message was not edited", edit.job)
        if edit.kind == "final" and case.troubles < TRIES:
            self._again(edit, 2.0**case.troubles, False)
            return
        self.edits.sent(edit, self._clock())
        if edit.kind == "final":
            self._close(edit.job)

    def _again(self, edit: Edit[Content], seconds: float, limited: bool) -> None:
        now = self._clock()
        self.edits.failed(edit, now, seconds)
        if limited:
            self.edits.hold(edit.bucket, now + seconds)
