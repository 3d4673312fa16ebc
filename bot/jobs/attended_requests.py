"""A request that its client waits for: admitted as jobs, followed by previews, answered with the pictures' bytes.

Front ends whose protocol answers with pictures use it, such as those of other programs' APIs. A client that goes away
before the end cancels its jobs, since nobody else waits for them. With an idempotency key the jobs go on, since the
same request finds them again. A restart of the bot cancels none.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bot.domain.dto import AcceptedJob, Destination, JobView, Member
from bot.domain.errors import UserError
from bot.domain.events import Feed, JobEnded, JobEvent, JobProgress, Subscription
from bot.domain.job_states import JobState, is_end
from bot.jobs.control import JobControl
from bot.jobs.drawing import JobService
from bot.jobs.init_images import InitImages
from bot.jobs.views import JobViews
from bot.pictures.gallery import Gallery
from bot.pictures.moderation_status import held_images
from bot.store import DatabaseUnavailable
from engine.contract import MAX_COUNT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureRequest:
    """What a client asks for. `options`: as `JobService.imagine` takes them; `images`: what the pictures begin with."""

    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    images: InitImages | None = None
    key: str | None = None  # the same again finds the same jobs


@dataclass(frozen=True)
class Preview:
    """The newest preview (JPEG) of a picture, after `step` of `total_steps`. `picture` counts from 0 over all jobs."""

    picture: int
    jpeg: bytes
    step: int
    total_steps: int


@dataclass(frozen=True)
class DrawnPicture:
    """A finished picture as PNG. `picture` counts from 0 over all jobs of the request, `index` in its own job."""

    picture: int
    job: str
    index: int
    png: bytes
    width: int
    height: int


class PicturesMissing(Exception):
    """A job ended without pictures that may be shown: failed, cancelled, or all held by the picture check.

    `sentence` says why; `is_held`: the picture check or a moderator holds them.
    """

    def __init__(self, sentence: str, state: JobState, *, is_held: bool = False) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.state = state
        self.is_held = is_held


class FeedClosed(ConnectionError):
    """The bot shuts down: its jobs go on after the restart, but nobody can follow them here."""


class AttendedRequest:
    """An admitted request. Read `follow_events` first, if at all, then `read_pictures`."""

    def __init__(
        self,
        accepted_jobs: Sequence[AcceptedJob],
        subscriptions: Sequence[Subscription],
        job_views: JobViews,
        gallery: Gallery,
    ) -> None:
        self.jobs = tuple(accepted_jobs)
        self.open_jobs = {accepted.job for accepted in accepted_jobs}  # those whose end nobody has read yet
        self._subscriptions = tuple(subscriptions)
        self._job_views = job_views
        self._gallery = gallery
        self._views: dict[str, JobView] = {}  # of ended jobs

    async def follow_events(self) -> AsyncIterator[JobEvent]:
        """Yield the jobs' events until all have ended, in the order of the jobs. Raises `FeedClosed`."""
        for accepted, subscription in zip(self.jobs, self._subscriptions, strict=True):
            if await self._note_end(accepted.job):
                continue
            async for job_event in subscription:
                yield job_event
                if isinstance(job_event, JobEnded):
                    break
            if not await self._note_end(accepted.job):
                self.keep_jobs()
                raise FeedClosed("The bot shuts down.")

    async def follow_previews(self) -> AsyncIterator[Preview]:
        """Yield each new preview of each picture, until all jobs have ended. Raises `FeedClosed`."""
        async for job_event in self.follow_events():
            if isinstance(job_event, JobProgress):
                for index, jpeg in sorted(job_event.frames.items()):
                    picture = self._number_picture(job_event.job, index)
                    yield Preview(picture, jpeg, job_event.step, job_event.total_steps)

    async def read_pictures(self, *, is_partial: bool = False) -> list[DrawnPicture]:
        """Wait for the end; return the pictures that may be shown. Raises `PicturesMissing` if a job has none.

        `is_partial`: jobs that were cancelled are left out, if another one has finished.
        """
        async for _ in self.follow_events():
            pass
        pictures = list[DrawnPicture]()
        is_partial = is_partial and any(view.state == "finished" for view in self.views)
        for view in self.views:
            if view.state == "cancelled" and is_partial:
                continue
            if view.state != "finished":
                raise PicturesMissing(view.reason or f"The job was {view.state}.", view.state)
            pictures += [
                DrawnPicture(
                    self._number_picture(view.id, picture.index),
                    view.id,
                    picture.index,
                    await self._gallery.read_picture(view.id, picture.index),
                    picture.width,
                    picture.height,
                )
                for picture in view.pictures
                if picture.index not in held_images(view)
            ]
        if not pictures:
            raise PicturesMissing("All of its pictures are held by the picture check.", "finished", is_held=True)
        return pictures

    @property
    def views(self) -> list[JobView]:
        """The jobs that have ended, in their order."""
        return [self._views[accepted.job] for accepted in self.jobs if accepted.job in self._views]

    def stop_following(self) -> None:
        """End the events now: who reads them gets `FeedClosed`, unless the jobs have ended. The jobs go on."""
        self.keep_jobs()
        for subscription in self._subscriptions:
            subscription.close()

    def keep_jobs(self) -> None:
        """Let the jobs go on, whoever leaves."""
        self.open_jobs.clear()

    def _number_picture(self, job: str, index: int) -> int:
        """Return a picture's number among all jobs'; those that a split adds come after all that were asked for."""
        counts = [accepted.count for accepted in self.jobs]
        position = [accepted.job for accepted in self.jobs].index(job)
        if index < counts[position]:
            return sum(counts[:position]) + index
        return sum(counts) + position * MAX_COUNT + index

    async def _note_end(self, job: str) -> bool:
        """Return whether the job has ended; its view is kept then."""
        if job not in self._views:
            view = await self._job_views.load_view(job)
            if not is_end(view.state):
                return False
            self._views[job] = view
            self.open_jobs.discard(job)
        return True


class AttendedRequests:
    """Admits requests whose clients wait for the pictures."""

    def __init__(
        self, jobs: JobService, job_control: JobControl, job_views: JobViews, gallery: Gallery, feed: Feed
    ) -> None:
        self._jobs = jobs
        self._job_control = job_control
        self._job_views = job_views
        self._gallery = gallery
        self._feed = feed

    @asynccontextmanager
    async def admit(
        self, request: PictureRequest, member: Member, destination: Destination, *, with_previews: bool = True
    ) -> AsyncGenerator[AttendedRequest]:
        """Admit a request for the length of the context. Its jobs that run at the end are cancelled, unless the
        request has a key. Raises `UserError` for a refused one.

        `with_previews`: ask the workers for previews.
        """
        accepted_jobs = await self._jobs.imagine(
            request.prompt, member, destination, key=request.key, init_images=request.images, **request.options
        )
        is_kept = request.key is not None
        del request  # its pictures need no memory while the jobs run
        async with self.attend(accepted_jobs, member, is_kept=is_kept, with_previews=with_previews) as attended_request:
            yield attended_request

    @asynccontextmanager
    async def attend(
        self, accepted_jobs: Sequence[AcceptedJob], member: Member, *, is_kept: bool = False, with_previews: bool = True
    ) -> AsyncGenerator[AttendedRequest]:
        """Attend to jobs that another service has admitted, as `admit` does. `is_kept`: they go on in any case."""
        async with AsyncExitStack() as stack:
            subscriptions = [
                await stack.enter_async_context(self._feed.subscribe(accepted.job, with_previews=with_previews))
                for accepted in accepted_jobs
            ]
            attended_request = AttendedRequest(accepted_jobs, subscriptions, self._job_views, self._gallery)
            if is_kept:
                attended_request.keep_jobs()
            try:
                yield attended_request
            finally:
                await self._cancel(sorted(attended_request.open_jobs), member)

    async def _cancel(self, jobs: Sequence[str], member: Member) -> None:
        for job in jobs:
            with contextlib.suppress(UserError):  # it was deleted meanwhile
                try:
                    await self._job_control.cancel(job, member)
                except DatabaseUnavailable as error:
                    log.warning("job %s goes on though its client has gone: %s", job, error)
