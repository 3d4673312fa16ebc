"""Review of held pictures: moderators look at them, show them, or keep them hidden. Every decision is logged."""

from __future__ import annotations

import time
from collections.abc import Callable

from bot.domain.dto import JobView, Member
from bot.domain.errors import UserError
from bot.jobs.views import JobViews
from bot.pictures.gallery import Gallery
from bot.pictures.moderation_status import held_images
from bot.policy.permissions import Action, JobRef, forbidden_reason
from bot.store import Store
from bot.store.moderation.incidents import list_waiting_jobs, review_picture


class PictureReview:
    """The use cases. Every method raises `UserError`: 403 without permission, 404 for what does not exist."""

    def __init__(
        self, store: Store, job_views: JobViews, gallery: Gallery, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._job_views = job_views
        self._gallery = gallery
        self._clock = clock

    async def load_held_pictures(self, job: str, member: Member) -> list[tuple[int, bytes]]:
        """Return the held images of a job unblurred, each with its index: for a moderator only."""
        view = await self._load_view(job, member, "approve")
        if not (held_indices := held_images(view)):
            raise UserError("No picture of this job is held.", 404)
        return [(index, await self._gallery.read_unblurred(job, index)) for index in held_indices]

    async def list_waiting(self, member: Member, limit: int) -> list[JobView]:
        """Return the guild's jobs with pictures that wait for a moderator, oldest first; private ones too."""
        if reason := forbidden_reason("approve", member):
            raise UserError(reason, 403)
        return await self._job_views.build_views(await self._store.query(list_waiting_jobs, member.guild, limit))

    async def decide(self, job: str, index: int, member: Member, *, show: bool) -> JobView:
        """Show a held picture, or keep it hidden; return the job's new view. Idempotent."""
        view = await self._load_view(job, member, "approve" if show else "deny")
        picture = next((each for each in view.pictures if each.index == index), None)
        if picture is None:
            raise UserError("There is no such picture.", 404)
        if index not in held_images(view) and not picture.reviewed:
            raise UserError(f"Picture {index + 1} is not held.", 404)
        await self._store.write(review_picture, job, index, "shown" if show else "hidden", member, self._clock())
        return (await self._job_views.build_views([await self._job_views.load_record(job)]))[0]

    async def _load_view(self, job: str, member: Member, action: Action) -> JobView:
        view = (await self._job_views.build_views([await self._job_views.load_record(job)]))[0]
        job_ref = JobRef(view.member_id, view.member_name, view.guild, view.is_private)
        if reason := forbidden_reason(action, member, job_ref):
            raise UserError(reason, 403)
        if view.state != "finished":
            raise UserError("This job is not finished, so there is nothing to decide yet.", 404)
        return view
