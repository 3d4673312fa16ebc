"""Review of held pictures: moderators look at them, show them, or keep them hidden. Every decision is logged."""

from __future__ import annotations

import time
from collections.abc import Callable

from bot.access import Action, Subject, forbidden
from bot.desk.register import Register
from bot.images.gallery import Gallery
from bot.images.held import held
from bot.refused import Refused
from bot.store import Store
from bot.store.reviews import review, waiting
from bot.views import Member, View


class Review:
    """The use cases. Every method raises `Refused`: 403 without permission, 404 for what does not exist."""

    def __init__(
        self, store: Store, register: Register, gallery: Gallery, *, clock: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        self._store, self._register, self._gallery, self._clock = store, register, gallery, clock

    async def look(self, job: str, member: Member) -> list[tuple[int, bytes]]:
        """Return the held images of a job unblurred, each with its index: for a moderator only."""
        view = await self._view(job, member, "approve")
        if not (hidden := held(view)):
            raise Refused("No picture of this job is held.", 404)
        return [(index, await self._gallery.behind(job, index)) for index in hidden]

    async def waiting(self, member: Member, limit: int) -> list[View]:
        """Return the guild's jobs with pictures that wait for a moderator, oldest first; private ones too."""
        if reason := forbidden("approve", member):
            raise Refused(reason, 403)
        return await self._register.views(await self._store.ask(waiting, member.guild, limit))

    async def decide(self, job: str, index: int, member: Member, *, show: bool) -> View:
        """Show a held picture, or keep it hidden; return the job's new view. Idempotent."""
        view = await self._view(job, member, "approve" if show else "deny")
        shot = next((shot for shot in view.pictures if shot.index == index), None)
        if shot is None:
            raise Refused("There is no such picture.", 404)
        if index not in held(view) and not shot.reviewed:
            raise Refused(f"Picture {index + 1} is not held.", 404)
        await self._store.write(review, job, index, "shown" if show else "hidden", member, self._clock())
        return (await self._register.views([await self._register.record(job)]))[0]

    async def _view(self, job: str, member: Member, action: Action) -> View:
        view = (await self._register.views([await self._register.record(job)]))[0]
        subject = Subject(view.member_id, view.member_name, view.guild, view.private)
        if reason := forbidden(action, member, subject):
            raise Refused(reason, 403)
        if view.state != "finished":
            raise Refused("This job is not finished, so there is nothing to decide yet.", 404)
        return view
