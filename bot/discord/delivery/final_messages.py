"""Shows a job in its messages: edits the response while it waits and runs, and sends the final exactly once.

Each turn of a final reads from the recorded deliveries what is left to do, does it, and then records it. After a crash
in between, it repeats the edit, which changes nothing, or searches for the message that it may have posted. Knows the
services and the message client, but not budgets or when to send."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from bot.discord.cards import job_cards, pictures
from bot.discord.cards.pictures import UPLOAD_LIMIT
from bot.discord.declarations import extend_final, extend_progress
from bot.discord.delivery import discord_api, tracked_messages
from bot.discord.delivery.discord_api import (
    UNKNOWN_REASON,
    Address,
    DestinationGone,
    FileTooLarge,
    MessageClient,
    OutgoingMessage,
    RetryLater,
)
from bot.discord.delivery.tracked_messages import NotifyPrefs, author_of
from bot.domain.dto import DeliveryRole, Destination, JobView
from bot.domain.errors import UserError
from bot.domain.events import JobProgress, ModelLoading, QueueMoved
from bot.pictures.uploads.upload_decoder import UploadDecoder

if TYPE_CHECKING:
    from bot.discord.cards.job_cards import Card
    from bot.discord.cards.pictures import PictureFile
    from bot.discord.delivery.tracked_messages import TrackedMessage
    from bot.domain.dto import Delivery
    from bot.services import Services

log = logging.getLogger(__name__)

PRIVATE_ANSWER_EXPIRED = "A private answer can only be changed for 15 minutes."
EDIT_TIMEOUT = 6.0  # seconds of one edit: its job's final waits for it
ID_GRACE_SECONDS = 6.0  # seconds until a response's message id must be known; then we search for it
RESPONSE_WINDOW = 900.0  # seconds that Discord allows for any response
YOUNG_JOB_AGE = 60.0  # seconds: an older job's response is not being sent any more
RESPONSE_NEVER_ARRIVED = "Its first answer never reached its channel."
DeliveriesByRole = dict[DeliveryRole, "Delivery"]


class MessageSender:
    """Shows a job for the courier. `clock` is its clock, `wall_clock` the time of day, `public_url` the web page's."""

    def __init__(
        self,
        services: Services,
        message_client: MessageClient,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        public_url: str = "",
    ) -> None:
        self._services = services
        self._deliveries = services.deliveries
        self._message_client = message_client
        self._clock = clock
        self._wall_clock = wall_clock
        self._public_url = public_url
        self._picture_cache = pictures.PictureCache()

    async def show_progress(
        self, event: QueueMoved | ModelLoading | JobProgress, message: TrackedMessage, on_rendered: Callable[[], None]
    ) -> None:
        """Show the newest state; `on_rendered` is called before it is sent. Of a deleted job nothing is shown.

        Raises the errors of `bot.discord.delivery.discord_api` except `DestinationGone`: then the response is lost.
        """
        try:
            card, picture = await self._render_progress(event, message)
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

    async def _render_progress(
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

    async def next_destination(self, job: str, message: TrackedMessage) -> tuple[DeliveryRole, Address] | None:
        """Return the next destination to serve; None once the job is settled everywhere, which is then recorded.

        A deleted job has none.
        """
        if message.deliveries and tracked_messages.is_settled(message.deliveries):
            self._picture_cache.forget(job)
            return None
        deliveries = await self._deliveries.list_deliveries(job)
        if "answer" not in deliveries or tracked_messages.is_settled(deliveries):  # without one, the job is deleted
            self._picture_cache.forget(job)
            return None
        try:
            message.view = await self._services.job_views.load_view(job)
        except UserError as error:  # its author had everything deleted in the meantime
            log.debug("job %s: no final to show: %s", job, error.sentence)
            self._picture_cache.forget(job)
            return None
        message.notify_prefs = message.notify_prefs or await self._load_notify_prefs(message.view)
        missing_roles = tracked_messages.missing_roles(message.view, deliveries, message.notify_prefs)
        for role in missing_roles:
            address = _new_address(role, deliveries["answer"].destination.address, message.view) | self._posting_time()
            if await self._deliveries.add_destination(job, role, Destination("discord", address)):
                message.unposted_roles.add(role)
        if missing_roles:
            deliveries = await self._deliveries.list_deliveries(job)
        message.deliveries = deliveries
        role = tracked_messages.next_role(deliveries)
        if role is not None:
            return role, deliveries[role].destination.address
        self._picture_cache.forget(job)
        response = deliveries["answer"]
        if response.delivered_at is None:  # the response is gone, and the other destinations are served
            await self._deliveries.mark_delivered(job, "answer", response.reason)
        return None

    async def _load_notify_prefs(self, view: JobView) -> NotifyPrefs:
        preference = await self._services.preferences.load_preference(view.member_id)
        rules = await self._services.rule_admin.effective_rules(author_of(view))
        return NotifyPrefs(preference.ping, preference.direct, rules.long_ping)

    async def show_final(self, job: str, role: DeliveryRole, message: TrackedMessage) -> None:
        """Show the final in one destination, or record why that fails.

        Raises the errors of `bot.discord.delivery.discord_api` except `DestinationGone`.
        """
        known = message.deliveries if role == "answer" else None  # a new message cannot be taken back: look again
        deliveries = known or await self._deliveries.list_deliveries(job)
        message.deliveries = None  # another try reads them again
        try:
            if role == "answer":
                await self._show_in_response(job, message, deliveries)
            else:
                await self._post_message(job, role, message, deliveries)
        except DestinationGone as error:
            log.warning("job %s: not shown as %s: %s", job, role, error)
            await self._record_failure(job, role, error.sentence)
        else:
            await self._deliveries.mark_delivered(job, role)
            await self._show_new_decisions(job, role, message)
            message.deliveries = {**deliveries, role: replace(deliveries[role], delivered_at=self._wall_clock())}

    async def _show_new_decisions(self, job: str, role: DeliveryRole, message: TrackedMessage) -> None:
        """Edit a message again if a moderator decided while it was sent. A decision in Discord edits later ones."""
        shown_view = message.view
        if not shown_view.needs_check:
            return
        try:
            message.view = await self._services.job_views.load_view(job)
            if _list_verdicts(message.view) == _list_verdicts(shown_view):
                return
            deliveries = await self._deliveries.list_deliveries(job)
            if role == "answer":
                await self._show_in_response(job, message, deliveries)
                return
            renewed = await self._build_message(job, role, message, deliveries)
            target = deliveries[role]
            address = {**target.destination.address, "message": target.message}
            await self._message_client.edit(address, renewed.card, renewed.files, self._wall_clock())
        except UserError as error:  # its author had everything deleted in the meantime
            log.debug("job %s: no decision to show: %s", job, error.sentence)
        except Exception:  # the message is sent: its job must not be sent again
            log.exception("job %s: a decision was not shown as %s", job, role)

    async def record_rejection(self, job: str, role: DeliveryRole) -> bool:
        """Record that Discord never accepts the final there; return False if the store is unavailable."""
        try:
            await self._record_failure(job, role, UNKNOWN_REASON)
        except Exception:
            log.exception("job %s: its failed delivery was not recorded", job)
            return False
        return True

    async def _record_failure(self, job: str, role: DeliveryRole, sentence: str) -> None:
        """Record why it cannot be shown there.

        `destinations` then chooses another one; if there is none, `/mine` shows the reason.
        """
        if role == "answer":
            await self._deliveries.mark_lost(job, sentence)
        else:
            await self._deliveries.mark_delivered(job, role, sentence)

    async def _show_in_response(self, job: str, message: TrackedMessage, deliveries: DeliveriesByRole) -> None:
        address = deliveries["answer"].destination.address
        now = self._wall_clock()
        if message.view.is_private and not discord_api.is_token_valid(address, now):
            raise DestinationGone("the token of a private answer has ended", PRIVATE_ANSWER_EXPIRED)
        if notice := tracked_messages.delivered_notice(deliveries):
            card = job_cards.render_collapsed(message.view, job_cards.message_link(notice.destination.address))
            await self._message_client.edit(address, card, (), now, keep_files=False)
            return
        limit = min(message.upload_limit, int(address.get("limit") or UPLOAD_LIMIT))
        card, files = await self._render_final(message, limit)
        await self._message_client.edit(address, card, files, now)

    async def _post_message(
        self, job: str, role: DeliveryRole, message: TrackedMessage, deliveries: DeliveriesByRole
    ) -> None:
        """Post a new message, unless a process that crashed before recording it has posted it already."""
        address = deliveries[role].destination.address
        if role == "direct" and not address.get("channel"):
            address["channel"] = str(await self._message_client.open_direct_channel(address["user"]))
            await self._deliveries.update_address(job, role, channel=address["channel"])
        is_new = role in message.unposted_roles
        message.unposted_roles.discard(role)
        message_id = (
            None if is_new else await self._message_client.find_posted_message(address, job, self._wall_clock())
        )
        if message_id is None:
            if not is_new:
                await self._deliveries.update_address(job, role, **self._posting_time())
            message_id = await self._message_client.post_message(
                address, await self._build_message(job, role, message, deliveries)
            )
        await self._deliveries.update_address(job, role, message=str(message_id))

    def _posting_time(self) -> dict[str, str]:
        """Return since when the message may be there."""
        return {"posting": str(self._wall_clock())}

    async def _build_message(
        self, job: str, role: DeliveryRole, message: TrackedMessage, deliveries: DeliveriesByRole
    ) -> OutgoingMessage:
        card, files = await self._render_final(message, min(message.upload_limit, UPLOAD_LIMIT))
        # Discord accepts 25 characters
        response = deliveries["answer"]
        nonce = f"{role[0]}{job[-24:]}"
        if role == "direct":
            return OutgoingMessage(job_cards.render_direct(card, response.reason), files, nonce)
        user = message.view.member_id.removeprefix("discord:")
        if not (message.notify_prefs and message.notify_prefs.ping and user.isdecimal()):
            return OutgoingMessage(card, files, nonce, reply_to=response.message)
        return OutgoingMessage(job_cards.render_notice(card, user), files, nonce, user, response.message)

    async def _render_final(self, message: TrackedMessage, limit: int) -> tuple[Card, tuple[PictureFile, ...]]:
        """Return the final card and its files: the pictures, and what features add."""
        view = message.view
        card, picture = await pictures.render_final(self._services.gallery, view, limit, self._picture_cache)
        if picture is None and view.state == "finished" and self._public_url:
            card = job_cards.with_full_size_link(card, f"{self._public_url}/api/jobs/{view.id}/grid.png")
        files = () if picture is None else (picture,)
        if view.state != "finished":
            return card, files
        card, added_files = await extend_final(self._services, view, card, limit)
        return card, files + added_files


def _list_verdicts(view: JobView) -> list[tuple[int, str, str]]:
    return [(picture.index, picture.verdict, picture.reviewed) for picture in view.pictures]


def _new_address(role: DeliveryRole, response_address: Address, view: JobView) -> dict[str, str]:
    if role == "direct":
        return {"user": view.member_id.removeprefix("discord:")}
    return {name: response_address[name] for name in ("guild", "channel") if name in response_address}
