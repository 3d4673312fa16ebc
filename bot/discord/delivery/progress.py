"""Progress: edits the response while its job waits and runs, until the final.

It knows the services and the message client, but not budgets or when to send.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from bot.discord.cards import job_cards, pictures
from bot.discord.delivery.discord_api import MessageClient
from bot.discord.delivery.errors import DestinationGone, FileTooLarge, RetryLater
from bot.discord.delivery.tracked_messages import author_of
from bot.discord.extension import extend_progress
from bot.domain.errors import UserError
from bot.domain.events import JobProgress, ModelLoading, QueueMoved
from bot.pictures.uploads.upload_decoder import UploadDecoder

if TYPE_CHECKING:
    from bot.discord.cards.job_cards import Card
    from bot.discord.cards.pictures import PictureFile
    from bot.discord.delivery.tracked_messages import TrackedMessage
    from bot.services import Services

log = logging.getLogger(__name__)

EDIT_TIMEOUT = 6.0  # seconds of one edit: its job's final waits for it
ID_GRACE_SECONDS = 6.0  # seconds until a response's message id must be known; then we search for it
RESPONSE_WINDOW = 900.0  # seconds that Discord allows for any response
YOUNG_JOB_AGE = 60.0  # seconds: an older job's response is not being sent any more
RESPONSE_NEVER_ARRIVED = "Its first answer never reached its channel."


class ProgressUpdater:
    """Edits responses for the courier. `clock` is its clock, `wall_clock` the time of day."""

    def __init__(
        self,
        services: Services,
        message_client: MessageClient,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._services = services
        self._deliveries = services.deliveries
        self._message_client = message_client
        self._clock = clock
        self._wall_clock = wall_clock

    async def show(
        self, event: QueueMoved | ModelLoading | JobProgress, message: TrackedMessage, on_rendered: Callable[[], None]
    ) -> None:
        """Show the newest state; `on_rendered` is called before it is sent. Of a deleted job nothing is shown.

        Raises the errors of `bot.discord.delivery.errors` except `DestinationGone`: then the response is lost.
        """
        try:
            card, picture = await self._render(event, message)
        except UserError as error:  # its author had everything deleted in the meantime
            log.debug("job %s: nothing to show: %s", event.job, error.sentence)
            return
        on_rendered()
        try:
            await self._message_client.edit(
                message.destination.address,
                card,
                (picture,) if picture else (),
                self._wall_clock(),
                timeout=EDIT_TIMEOUT,
            )
        except FileTooLarge as error:
            message.shows_frames = False
            raise RetryLater(1.0, f"its previews are too large here, so only text is sent: {error}") from error
        except DestinationGone as error:
            log.warning("job %s: its message is gone: %s", event.job, error)
            await self._record_loss(event.job, message, error.sentence)

    async def find_response(self, job: str, message: TrackedMessage) -> None:
        """Find a response of unknown id: it is still being sent, or the bot died before it recorded the id."""
        age = self._wall_clock() - message.view.created
        is_response_pending = self._message_client.is_response_pending(message.destination.address)
        message.deliveries = None
        message.destination = await self._deliveries.answer_destination(job)
        if message.destination.address.get("message"):
            message.response_lost = False
            return
        if message.response_lost:
            return
        if (is_response_pending and age < RESPONSE_WINDOW) or (
            self._clock() - message.opened_at < ID_GRACE_SECONDS and age < YOUNG_JOB_AGE
        ):
            raise RetryLater(0.3, "its first answer is still under way")
        message_id = await self._message_client.find_response(
            message.destination.address, job, message.view.created, self._wall_clock()
        )
        if message_id is None:
            await self._record_loss(job, message, RESPONSE_NEVER_ARRIVED)
            return
        await self._deliveries.update_address(job, message=str(message_id))
        message.destination = await self._deliveries.answer_destination(job)

    async def _record_loss(self, job: str, message: TrackedMessage, sentence: str) -> None:
        """Record that the response is lost. `destinations` then decides where the final goes."""
        await self._deliveries.mark_lost(job, sentence)
        message.response_lost = True

    async def _render(
        self, event: QueueMoved | ModelLoading | JobProgress, message: TrackedMessage
    ) -> tuple[Card, PictureFile | None]:
        now = self._wall_clock()
        if isinstance(event, QueueMoved):
            message.view = await self._services.job_views.load_view(event.job)
            return job_cards.render_waiting(message.view, event.jobs_ahead, event.eta, now), None
        if isinstance(event, ModelLoading):
            return job_cards.render_loading(message.view, event.model, event.loaded_share, event.model_bytes), None
        if message.is_steerable is None:
            outlook = await self._services.steering.load_outlook(event.job, author_of(message.view))
            message.is_steerable = outlook is not None and not outlook.obstacle
        card = job_cards.render_progress(
            message.view,
            event.step,
            event.total_steps,
            event.seconds_left,
            now,
            amendments=list(message.amendments.values()),
            is_steerable=message.is_steerable,
        )
        card = await extend_progress(self._services, message.view, card, now)
        if not message.has_new_frames or not message.shows_frames:
            return card, None
        message.has_new_frames = False
        return card, await pictures.render_preview(message.view, message.frames, self._services.get(UploadDecoder))
