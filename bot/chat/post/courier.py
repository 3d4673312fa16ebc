"""The courier: one task that keeps the messages of all jobs up to date. It starts before the bot.

It listens to the feed and asks the edit policy (`edits`) what to send now. `progress` sends edits, `finals` the final.
An error with one message does not affect the others. Knows when to send; knows nothing of discord.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bot.chat.delivery import UPLOAD
from bot.chat.post.cases import Case, Cases
from bot.chat.post.counted import Edited, counted, silent
from bot.chat.post.edits import Edit, Edits, Kind
from bot.chat.post.finals import Finals
from bot.chat.post.mail import Mail, bucket, lives, post_bucket
from bot.chat.post.outcome import Wishes
from bot.chat.post.pauses import GivenUp
from bot.chat.post.progress import Progress
from bot.chat.post.setbacks import Setbacks
from bot.chat.post.troubles import Expired, Later, TooLarge, Unwanted
from bot.feed import Developing, Moment, Queued, Readying, Settled
from bot.states import over
from bot.views import Place, Role, View

if TYPE_CHECKING:
    from bot.desk import Desk

log = logging.getLogger(__name__)

NO_TOKEN = {"token_until": "0"}  # the token has expired
SWEEP = 60.0  # seconds between two sweeps for missed jobs


@dataclass(frozen=True)
class Last:
    """The final of a job, in one of its destinations."""

    job: str
    role: Role


Content = Moment | Last


class Courier:
    """Call `run`; it ends when cancelled, or when the feed closes. `public`: the web page's address, if any."""

    def __init__(
        self, desk: Desk, mail: Mail, edits: Edits[Content] | None = None, *, public: str = "",
        edited: Edited = silent, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.edits: Edits[Content] = edits or Edits()
        self._desk, self._studio, self._deliveries = desk, desk.studio, desk.deliveries
        self._mail = mail
        self._edited = edited
        self._clock = clock
        self._wall = wall
        self._cases = Cases(desk, clock)
        self._progress = Progress(desk, mail, clock, wall)
        self._finals = Finals(desk, mail, self._wishes, wall, public)
        self._given_up = GivenUp()
        self._setbacks = Setbacks(self.edits, clock)
        self._changed = asyncio.Event()

    @staticmethod
    def policy() -> Edits[Content]:
        """Return a new edit policy."""
        return Edits()

    async def run(self) -> None:
        """Deliver what ended while no bot ran, then keep up with the feed."""
        await self._mail.ready()
        async with self._studio.feed.subscribe(previews=False) as moments, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._send_all(group)), group.create_task(self._sweep_all(group))]
            async for moment in moments:
                await self._take_in(moment, group)
            for task in tasks:
                task.cancel()

    async def _wishes(self, view: View) -> Wishes:
        chosen = await self._desk.preferences.of(view.member_id)
        return Wishes(chosen.ping, chosen.direct, (await self._cases.terms(view)).long_ping)

    async def _sweep_all(self, group: asyncio.TaskGroup) -> None:
        """Sweep now and every `SWEEP` seconds: nothing that an outage of the store made us miss is lost."""
        while True:
            try:
                owed = await self._deliveries.owed("discord")
                self._given_up.keep([view.id for view, _ in owed])
                for view, place in owed:
                    if not self._given_up.waits(view.id, self._clock()):
                        case = await self._cases.open(view, place)
                        if over(view.state):
                            self._end(view.id, case, group)
            except Exception:
                log.exception("the undelivered jobs could not be read")
            await asyncio.sleep(SWEEP)

    async def _take_in(self, moment: Moment, group: asyncio.TaskGroup) -> None:
        try:
            case = await self._cases.find(moment.job)
        except Exception:
            log.exception("job %s: an event of it was not handled", moment.job)
            return
        if case is None:
            return
        if isinstance(moment, Settled):
            self._end(moment.job, case, group)
        elif case.lost and case.place.where.get("message"):
            return  # the message was deleted; without an id, it may still arrive
        elif isinstance(moment, Developing):
            case.frames |= moment.frames
            case.fresh |= bool(moment.frames)
            self._offer("preview", moment, case, self._clock() + moment.seconds_left)
        elif isinstance(moment, Readying):
            self._offer("preview", moment, case)  # as often as a preview, and from the same budget
        else:
            self._offer("place", moment, case)

    def _end(self, job: str, case: Case, group: asyncio.TaskGroup) -> None:
        """Stop all edits of a job that is over, except its final."""
        if not case.ending:
            case.ending, case.outages = True, 0
            self.edits.drop(job)
            group.create_task(self._go_on(job, case))

    async def _go_on(self, job: str, case: Case) -> None:
        """Offer the final in the next destination that lacks it; with none left, close the case."""
        try:
            found = await self._finals.next(job, case)
        except Exception:
            log.exception("job %s: its destinations could not be read", job)
            case.ending = False  # the next sweep tries again
            return
        if found is None:
            self._cases.close(job)
            return
        role, where = found
        name = bucket(where, self._wall()) if role == "answer" else post_bucket(where)
        key = job if role == "answer" else f"{job}:{role}"
        self.edits.offer(Edit(key, name, "final", Last(job, role), self._clock()))
        self._changed.set()

    def _offer(self, kind: Kind, moment: Moment, case: Case, due: float = math.inf) -> None:
        where, now = case.place.where, self._wall()
        if case.view.private and not lives(where, now):
            return  # only the token can edit it
        if self.edits.offer(Edit(moment.job, bucket(where, now), kind, moment, self._clock()), due):
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
        """Send one request; none of its errors reaches the other messages."""
        job = edit.content.job
        case = self._cases[job]
        try:
            with counted(edit, job, case, self._edited):
                await self._attempt(edit, case)
        except Later as later:
            self._setbacks.postpone(edit, case, later)
        except Expired:
            await self._hand_over(edit, case)
        except Exception as error:
            await self._stumble(edit, case, error)
        else:
            await self._done(edit, case)
        self._changed.set()

    async def _attempt(self, edit: Edit[Content], case: Case) -> None:
        job, content = edit.content.job, edit.content
        role: Role = content.role if isinstance(content, Last) else "answer"
        if role == "answer" and not case.place.where.get("message"):
            await self._progress.find(job, case)
        if role == "answer" and case.lost:
            return
        if isinstance(content, Queued | Readying | Developing):
            if not case.ending:
                await self._progress.show(content, case, partial(self._made, edit))
            return
        try:
            await self._finals.show(job, role, case)
        except TooLarge as large:
            case.limit = min(case.limit, int(case.place.where.get("limit") or UPLOAD)) // 2
            raise Later(0.0, f"its picture is too large here: {large}") from large

    def _made(self, edit: Edit[Content]) -> None:
        self.edits.made(edit)
        self._changed.set()

    async def _hand_over(self, edit: Edit[Content], case: Case) -> None:
        """After the token expired, edit the message as one of its channel, within the channel's budget."""
        job = edit.content.job
        case.place = Place("discord", {**case.place.where, **NO_TOKEN})
        try:
            await self._deliveries.moved(job, **NO_TOKEN)
        except Exception:
            log.exception("job %s: its expired token was not recorded", job)
        if isinstance(edit.content, Last):
            await self._done(edit, case)
            return
        self._setbacks.again(edit, case, 0.0)
        self._offer(edit.kind, edit.content, case)

    async def _done(self, edit: Edit[Content], case: Case) -> None:
        self._setbacks.over(case)
        self.edits.sent(edit, self._clock())
        if edit.final:
            self.edits.drop(edit.job)
            await self._go_on(edit.content.job, case)

    async def _stumble(self, edit: Edit[Content], case: Case, error: Exception) -> None:
        """Handle an unexpected error. A final is tried again, at last by a later sweep, or in another destination."""
        job = edit.content.job
        log.exception("job %s: its message was not edited", job)
        if self._setbacks.stumble(edit, case):
            return
        last = edit.content if isinstance(error, Unwanted) and isinstance(edit.content, Last) else None
        if last and await self._finals.gave_up(job, last.role):
            case.troubles = 0
            await self._done(edit, case)
            return
        self.edits.sent(edit, self._clock())
        if edit.final:
            self._given_up.add(job, self._clock())
            self.edits.drop(edit.job)
            self._cases.close(job)
