"""Progress: edits the response while its job waits and runs, until the final.

Knows the desk and the mail; knows nothing of budgets or of when to send.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from bot.chat import delivery, presenter
from bot.chat.post.mail import Mail
from bot.chat.post.troubles import Gone, Later, TooLarge
from bot.feed import Developing, Queued, Readying

if TYPE_CHECKING:
    from bot.chat.delivery import Picture
    from bot.chat.post.cases import Case
    from bot.chat.presenter import Card
    from bot.desk import Desk

log = logging.getLogger(__name__)

PATIENCE = 6.0  # seconds of one edit: its job's final waits for it
GRACE = 6.0  # seconds until a response's message id must be known; then we search for it
ANSWERED = 900.0  # seconds that Discord allows for any response
YOUNG = 60.0  # seconds: an older job's response is not being sent any more
NEVER_CAME = "Its first answer never reached its channel."


class Progress:
    """Edits responses for the courier. `clock` is its clock, `wall` the time of day."""

    def __init__(self, desk: Desk, mail: Mail, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._studio, self._deliveries = desk.studio, desk.deliveries
        self._mail, self._clock, self._wall = mail, clock, wall

    async def show(self, moment: Queued | Readying | Developing, case: Case, made: Callable[[], None]) -> None:
        """Show the newest state; `made` is called before it is sent.

        Raises the errors of `troubles` except `Gone`: then the case is lost.
        """
        card, picture = await self._made(moment, case)
        made()
        try:
            await self._mail.edit(case.place.where, card, picture, self._wall(), within=PATIENCE)
        except TooLarge as large:
            case.pictured = False
            raise Later(1.0, f"its previews are too large here, text has to do: {large}") from large
        except Gone as gone:
            log.warning("job %s: its message is gone: %s", moment.job, gone)
            await self._lose(moment.job, case, gone.sentence)

    async def find(self, job: str, case: Case) -> None:
        """Find a response of unknown id: it is still being sent, or the bot died before it recorded the id."""
        age, under_way = self._wall() - case.view.created, self._mail.under_way(case.place.where)
        case.place = await self._deliveries.place_of(job)
        if case.place.where.get("message"):
            case.lost = False
            return
        if case.lost:
            return
        if (under_way and age < ANSWERED) or (self._clock() - case.since < GRACE and age < YOUNG):
            raise Later(0.3, "its first answer is still under way")
        found = await self._mail.find_answer(case.place.where, job, case.view.created, self._wall())
        if found is None:
            await self._lose(job, case, NEVER_CAME)
            return
        await self._deliveries.moved(job, message=str(found))
        case.place = await self._deliveries.place_of(job)

    async def _lose(self, job: str, case: Case, sentence: str) -> None:
        """Record that the response is lost. `outcome` decides what follows at the end."""
        await self._deliveries.lost(job, sentence)
        case.lost = True

    async def _made(self, moment: Queued | Readying | Developing, case: Case) -> tuple[Card, Picture | None]:
        now = self._wall()
        if isinstance(moment, Queued):
            case.view = await self._studio.view(moment.job)
            return presenter.waiting(case.view, moment.place, moment.eta, now), None
        if isinstance(moment, Readying):
            return presenter.loading(case.view, moment.model, moment.done, moment.size), None
        card = presenter.developing(case.view, moment.step, moment.of, moment.seconds_left, now)
        if not case.fresh or not case.pictured:
            return card, None
        case.fresh = False
        return card, await delivery.preview(case.view, case.frames)
