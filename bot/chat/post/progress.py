"""The answer to a request while its job waits and develops: one edit after another, until the last word.

Knows the desk and the mail; knows nothing of budgets or of when.
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

PATIENCE = 6.0  # seconds of one edit: its job's last word waits for it
GRACE = 6.0  # seconds that an answer may take until its message id is known; then we look for it
ANSWERED = 900.0  # seconds that Discord lets any answer take
YOUNG = 60.0  # seconds: an older job's answer is not under way any more
NEVER_CAME = "Its first answer never reached its channel."


class Progress:
    """Made by the courier. `clock` is its clock, `wall` the time of day."""

    def __init__(self, desk: Desk, mail: Mail, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self._studio, self._deliveries = desk.studio, desk.deliveries
        self._mail, self._clock, self._wall = mail, clock, wall

    async def show(self, moment: Queued | Readying | Developing, case: Case, made: Callable[[], None]) -> None:
        """The newest of it; `made` is called when it goes out.

        Raises what `troubles` has, but `Gone`: then the case is lost.
        """
        card, picture = await self._made(moment, case)
        made()
        try:
            await self._mail.edit(case.place.where, card, picture, self._wall(), within=PATIENCE)
        except TooLarge as large:
            case.pictured = False
            raise Later(1.0, f"its previews are too large here, words have to do: {large}") from large
        except Gone as gone:
            log.warning("job %s: its message is gone: %s", moment.job, gone)
            await self._lose(moment.job, case, gone.sentence)

    async def find(self, job: str, case: Case) -> None:
        """The message id was not known: the answer is still under way, or the bot died between answer and note."""
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
        """What follows at the end is `outcome`'s business."""
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
