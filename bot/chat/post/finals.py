"""Finals: the final message about a job, in each of its destinations, exactly once.

Each turn reads from the recorded deliveries what is left to do (`outcome`), does it, and then records it. A crash in
between repeats an edit, which changes nothing, or searches for the message that may have been posted. Knows the desk
and the mail; knows nothing of budgets or of when to send.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from bot.chat import delivery, notices
from bot.chat.delivery import UPLOAD
from bot.chat.post import mail, outcome
from bot.chat.post.mail import Letter, Mail, Where
from bot.chat.post.outcome import Wishes
from bot.chat.post.troubles import UNKNOWN, Gone
from bot.views import Place, Role, View

if TYPE_CHECKING:
    from bot.chat.post.cases import Case
    from bot.desk import Desk
    from bot.views import Delivery

log = logging.getLogger(__name__)

EPHEMERAL = "A private answer can only be changed for 15 minutes."
Known = dict[Role, "Delivery"]


class Finals:
    """Sends finals for the courier. `wishes` reads what author and server want; `wall` is the time of day."""

    def __init__(
        self, desk: Desk, mail: Mail, wishes: Callable[[View], Awaitable[Wishes]], wall: Callable[[], float],
        public: str = "",
    ) -> None:  # fmt: skip
        self._studio, self._deliveries = desk.studio, desk.deliveries
        self._mail, self._wishes, self._wall, self._public = mail, wishes, wall, public
        self._kept = delivery.Kept()

    async def next(self, job: str, case: Case) -> tuple[Role, Where] | None:
        """Return the next destination to serve; None once the job is settled everywhere, which is then recorded."""
        known = await self._deliveries.of(job)
        if outcome.settled(known):
            self._kept.forget(job)
            return None
        case.view = await self._studio.view(job)
        case.wishes = case.wishes or await self._wishes(case.view)
        for role in outcome.lacking(case.view, known, case.wishes):
            where = _new_place(role, known["answer"].place.where, case.view) | self._posting()
            if await self._deliveries.add(job, role, Place("discord", where)):
                case.unposted.add(role)
            known = await self._deliveries.of(job)
        role = outcome.due(known)
        if role is not None:
            return role, known[role].place.where
        self._kept.forget(job)
        answer = known["answer"]
        if answer.delivered is None:  # the response is gone, and the other destinations are served
            await self._deliveries.delivered(job, "answer", answer.reason)
        return None

    async def show(self, job: str, role: Role, case: Case) -> None:
        """Show the final in one destination, or record why that fails.

        Raises the errors of `troubles` except `Gone`.
        """
        known = await self._deliveries.of(job)
        try:
            if role == "answer":
                await self._answer(job, case, known)
            else:
                await self._post(job, role, case, known)
        except Gone as gone:
            log.warning("job %s: not shown as %s: %s", job, role, gone)
            await self._give_up(job, role, gone.sentence)
        else:
            await self._deliveries.delivered(job, role)

    async def gave_up(self, job: str, role: Role) -> bool:
        """Record that Discord never accepts it there; return False if that could not be recorded."""
        try:
            await self._give_up(job, role, UNKNOWN)
        except Exception:
            log.exception("job %s: its failed delivery was not recorded", job)
            return False
        return True

    async def _give_up(self, job: str, role: Role, sentence: str) -> None:
        """Record why it cannot be shown there.

        `outcome` then chooses another destination, or `/mine` with the reason.
        """
        if role == "answer":
            await self._deliveries.lost(job, sentence)
        else:
            await self._deliveries.delivered(job, role, sentence)

    async def _answer(self, job: str, case: Case, known: Known) -> None:
        where, now = known["answer"].place.where, self._wall()
        if case.view.private and not mail.lives(where, now):
            raise Gone("the token of a private answer has ended", EPHEMERAL)
        if notice := outcome.told(known):
            card = notices.collapsed(case.view, notices.link(notice.place.where))
            await self._mail.edit(where, card, None, now, keep=False)
            return
        card, picture = await self._ending(case, min(case.limit, int(where.get("limit") or UPLOAD)))
        await self._mail.edit(where, card, picture, now)

    async def _post(self, job: str, role: Role, case: Case, known: Known) -> None:
        """Post a new message, unless a process that crashed before recording it has posted it already."""
        where = known[role].place.where
        if role == "direct" and not where.get("channel"):
            where["channel"] = str(await self._mail.direct(where["user"]))
            await self._deliveries.moved(job, role, channel=where["channel"])
        fresh = role in case.unposted
        case.unposted.discard(role)
        message = None if fresh else await self._mail.find_posted(where, job, self._wall())
        if message is None:
            if not fresh:
                await self._deliveries.moved(job, role, **self._posting())
            message = await self._mail.post(where, await self._letter(job, role, case, known))
        await self._deliveries.moved(job, role, message=str(message))

    def _posting(self) -> dict[str, str]:
        """Return since when the message may be there."""
        return {"posting": str(self._wall())}

    async def _letter(self, job: str, role: Role, case: Case, known: Known) -> Letter:
        card, picture = await self._ending(case, min(case.limit, UPLOAD))
        answer, nonce = known["answer"], f"{role[0]}{job[-24:]}"  # Discord accepts 25 characters
        if role == "direct":
            return Letter(notices.elsewhere(card, answer.reason), picture, nonce)
        user = case.view.member_id.removeprefix("discord:")
        if not (case.wishes and case.wishes.ping and user.isdecimal()):
            return Letter(card, picture, nonce, reply_to=answer.message)
        return Letter(notices.notice(card, user), picture, nonce, user, answer.message)

    async def _ending(self, case: Case, limit: int) -> tuple[delivery.Card, delivery.Picture | None]:
        card, picture = await delivery.ending(self._studio, case.view, limit, self._kept)
        if picture is None and case.view.state == "finished" and self._public:
            card = notices.linked(card, f"{self._public}/api/jobs/{case.view.id}/grid.png")
        return card, picture


def _new_place(role: Role, answer: Where, view: View) -> dict[str, str]:
    if role == "direct":
        return {"user": view.member_id.removeprefix("discord:")}
    return {name: answer[name] for name in ("guild", "channel") if name in answer}
