"""The courier: one task that keeps the messages of all jobs up to date. It starts before the bot.

It listens to the feed, asks the edit policy (`edit_policy`) what to send now, and lets `final_messages` send it. An
error with one message does not affect the others. Failed requests are tried again, later each time; the outcome of each
is counted as one word. Knows when to send; knows nothing of discord.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bot.discord.cards.pictures import UPLOAD_LIMIT
from bot.discord.delivery.discord_api import (
    FileTooLarge,
    MessageClient,
    RequestRejected,
    RetryLater,
    TokenExpired,
    edit_bucket,
    is_token_valid,
    post_bucket,
)
from bot.discord.delivery.edit_policy import Edit, EditKind, EditPolicy, JobBackoff, backoff_pause
from bot.discord.delivery.final_messages import MessageSender
from bot.discord.delivery.tracked_messages import TrackedMessage, TrackedMessages
from bot.domain.dto import DeliveryRole, Destination
from bot.domain.events import JobEnded, JobEvent, JobProgress, JobSteered, ModelLoading, QueueMoved
from bot.domain.job_states import is_end
from engine.process.log_format import log_context

if TYPE_CHECKING:
    from bot.services import Services

log = logging.getLogger(__name__)

NO_TOKEN = {"token_until": "0"}  # the token has expired
SWEEP_SECONDS = 60.0  # seconds between two sweeps for missed jobs


@dataclass(frozen=True)
class FinalMessage:
    """The final of a job, in one of its destinations."""

    job: str
    role: DeliveryRole


EditContent = JobEvent | FinalMessage


RequestCounter = Callable[[str, str], None]


def count_nothing(_kind: str, _outcome: str) -> None:
    """Count nothing."""


class Courier:
    """Call `run`; it ends when cancelled, or when the feed closes. `public_url`: the web page's address, if any."""

    def __init__(
        self,
        services: Services,
        message_client: MessageClient,
        edit_policy: EditPolicy[EditContent] | None = None,
        *,
        public_url: str = "",
        count_outcome: RequestCounter = count_nothing,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.edit_policy: EditPolicy[EditContent] = edit_policy or EditPolicy()
        self._services = services
        self._deliveries = services.deliveries
        self._message_client = message_client
        self._count_outcome = count_outcome
        self._clock = clock
        self._wall_clock = wall_clock
        self._messages = TrackedMessages(services, clock)
        self._sender = MessageSender(services, message_client, clock, wall_clock, public_url)
        self._backoff = JobBackoff()
        self._retry_policy = RetryPolicy(self.edit_policy, clock)
        self._change_event = asyncio.Event()

    async def run(self) -> None:
        """Deliver what ended while no bot ran, then keep up with the feed."""
        await self._message_client.wait_until_ready()
        async with self._services.feed.subscribe(with_previews=False) as events, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._send_forever(group)), group.create_task(self._sweep_forever(group))]
            async for event in events:
                await self._handle_event(event, group)
            for task in tasks:
                task.cancel()

    async def _sweep_forever(self, group: asyncio.TaskGroup) -> None:
        """Sweep now and every `SWEEP_SECONDS` seconds: this finds what an outage of the store made us miss."""
        while True:
            try:
                undelivered = await self._deliveries.list_undelivered("discord")
                self._backoff.retain_only([view.id for view, _ in undelivered])
                for view, destination in undelivered:
                    if not self._backoff.is_waiting(view.id, self._clock()):
                        message = await self._messages.track(view, destination)
                        if is_end(view.state):
                            self._start_final(view.id, message, group)
            except Exception:
                log.exception("the undelivered jobs could not be read")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _handle_event(self, event: JobEvent, group: asyncio.TaskGroup) -> None:
        try:
            message = await self._messages.find_or_track(event.job)
        except Exception:
            log.exception("job %s: an event of it was not handled", event.job)
            return
        if message is None:
            return
        if isinstance(event, JobEnded):
            self._start_final(event.job, message, group)
        elif isinstance(event, JobSteered):
            message.follow_steering(event)
        elif message.response_lost and message.destination.address.get("message"):
            return  # the message was deleted; without an id, it may still arrive
        elif isinstance(event, JobProgress):
            message.frames |= event.frames
            message.has_new_frames |= bool(event.frames)
            self._offer_edit("preview", event, message, self._clock() + event.seconds_left)
        elif isinstance(event, ModelLoading):
            self._offer_edit("preview", event, message)  # a place: as often as a preview, from the same budget
        else:
            self._offer_edit("place", event, message)

    def _start_final(self, job: str, message: TrackedMessage, group: asyncio.TaskGroup) -> None:
        """Stop all edits of a job that is over, except its final."""
        if not message.final_pending:
            message.final_pending = True
            message.outage_count = 0
            self.edit_policy.discard(job)
            group.create_task(self._offer_next_final(job, message))

    async def _offer_next_final(self, job: str, message: TrackedMessage) -> None:
        """Offer the final in the next destination that lacks it; with none left, untrack the message."""
        try:
            next_final = await self._sender.next_destination(job, message)
        except Exception:
            log.exception("job %s: its destinations could not be read", job)
            message.final_pending = False  # the next sweep tries again
            return
        if next_final is None:
            self._messages.untrack(job)
            return
        role, address = next_final
        bucket_name = edit_bucket(address, self._wall_clock()) if role == "answer" else post_bucket(address)
        key = job if role == "answer" else f"{job}:{role}"
        self.edit_policy.offer(Edit(key, bucket_name, "final", FinalMessage(job, role), self._clock()))
        self._change_event.set()

    def _offer_edit(self, kind: EditKind, event: JobEvent, message: TrackedMessage, due: float = math.inf) -> None:
        address = message.destination.address
        now = self._wall_clock()
        if message.view.is_private and not is_token_valid(address, now):
            return  # only the token can edit it
        if self.edit_policy.offer(Edit(event.job, edit_bucket(address, now), kind, event, self._clock()), due):
            self._change_event.set()

    async def _send_forever(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._change_event.clear()
            while edit := self.edit_policy.take_next(self._clock()):
                group.create_task(self._send_edit(edit))
            wake_at = self.edit_policy.next_wake(self._clock())
            timeout = None if math.isinf(wake_at) else max(0.0, wake_at - self._clock())
            try:
                async with asyncio.timeout(timeout):
                    await self._change_event.wait()
            except TimeoutError:
                continue

    async def _send_edit(self, edit: Edit[EditContent]) -> None:
        """Send one request; its errors do not affect the other messages."""
        job = edit.content.job
        message = self._messages[job]
        try:
            with count_request(edit, job, message, self._count_outcome):
                await self._try_send(edit, message)
        except RetryLater as error:
            self._retry_policy.postpone(edit, message, error)
        except TokenExpired:
            await self._switch_to_channel(edit, message)
        except Exception as error:
            await self._handle_error(edit, message, error)
        else:
            await self._finish_request(edit, message)
        self._change_event.set()

    async def _try_send(self, edit: Edit[EditContent], message: TrackedMessage) -> None:
        job = edit.content.job
        content = edit.content
        role: DeliveryRole = content.role if isinstance(content, FinalMessage) else "answer"
        if role == "answer" and not message.destination.address.get("message"):
            await self._sender.find_response(job, message)
        if role == "answer" and message.response_lost:
            return
        if isinstance(content, QueueMoved | ModelLoading | JobProgress):
            if not message.final_pending:
                await self._sender.show_progress(content, message, partial(self._note_rendered, edit))
            return
        try:
            await self._sender.show_final(job, role, message)
        except FileTooLarge as error:
            message.upload_limit = (
                min(message.upload_limit, int(message.destination.address.get("limit") or UPLOAD_LIMIT)) // 2
            )
            raise RetryLater(0.0, f"its picture is too large here: {error}") from error

    def _note_rendered(self, edit: Edit[EditContent]) -> None:
        self.edit_policy.mark_rendered(edit)
        self._change_event.set()

    async def _switch_to_channel(self, edit: Edit[EditContent], message: TrackedMessage) -> None:
        """After the token expired, edit the message as an ordinary one of its channel, within the channel's budget."""
        job = edit.content.job
        message.destination = Destination("discord", {**message.destination.address, **NO_TOKEN})
        try:
            await self._deliveries.update_address(job, **NO_TOKEN)
        except Exception:
            log.exception("job %s: its expired token was not recorded", job)
        if isinstance(edit.content, FinalMessage):
            await self._finish_request(edit, message)
            return
        self._retry_policy.requeue(edit, message, 0.0)
        self._offer_edit(edit.kind, edit.content, message)

    async def _finish_request(self, edit: Edit[EditContent], message: TrackedMessage) -> None:
        self._retry_policy.reset(message)
        self.edit_policy.mark_sent(edit, self._clock())
        if edit.final:
            self.edit_policy.discard(edit.job)
            await self._offer_next_final(edit.content.job, message)

    async def _handle_error(self, edit: Edit[EditContent], message: TrackedMessage, error: Exception) -> None:
        """Handle an unexpected error. A final is tried again, at last by a later sweep, or in another destination."""
        job = edit.content.job
        log.exception("job %s: its message was not edited", job)
        if self._retry_policy.retry_after_error(edit, message):
            return
        final = edit.content if isinstance(error, RequestRejected) and isinstance(edit.content, FinalMessage) else None
        if final and await self._sender.record_rejection(job, final.role):
            message.error_count = 0
            await self._finish_request(edit, message)
            return
        self.edit_policy.mark_sent(edit, self._clock())
        if edit.final:
            self._backoff.add(job, self._clock())
            self.edit_policy.discard(edit.job)
            self._messages.untrack(job)


MAX_ATTEMPTS = 3  # attempts at one message after unexpected errors


class RetryPolicy:
    """Retries for the courier; `clock` is its clock."""

    def __init__(self, edit_policy: EditPolicy[Any], clock: Callable[[], float]) -> None:
        self._edit_policy = edit_policy
        self._clock = clock
        self._in_outage = False  # according to the latest requests

    def reset(self, message: TrackedMessage) -> None:
        """Reset the counters after a request for the message succeeded."""
        message.rate_limit_count = message.outage_count = 0
        self._in_outage = False

    def postpone(self, edit: Edit[Any], message: TrackedMessage, error: RetryLater) -> None:
        """Try again later; in an outage, wait longer each time. An endless rate limit holds up only its own message."""
        message.rate_limit_count = message.rate_limit_count + 1 if error.rate_limited else 0
        message.outage_count = message.outage_count + 1 if error.outage else 0
        seconds = backoff_pause(error.seconds, message.outage_count)
        if error.outage and not self._in_outage:
            self._in_outage = True
            log.warning("Discord is unreachable, deliveries wait: %s", error)
        level = logging.DEBUG if error.outage else logging.INFO
        log.log(level, "job %s: its message waits %.1f s: %s", edit.job, seconds, error)
        self.requeue(edit, message, seconds)
        if error.rate_limited and message.rate_limit_count <= MAX_ATTEMPTS:
            self._edit_policy.block_bucket(edit.bucket, self._clock() + seconds)

    def requeue(self, edit: Edit[Any], message: TrackedMessage, seconds: float) -> None:
        """Queue the same edit again, unless something newer comes."""
        message.has_new_frames = bool(message.frames)
        self._edit_policy.mark_failed(edit, self._clock(), seconds)

    def retry_after_error(self, edit: Edit[Any], message: TrackedMessage) -> bool:
        """After an unexpected error, try a final again a few times; return False when that is over."""
        if not edit.final or message.error_count >= MAX_ATTEMPTS - 1:
            return False
        message.error_count += 1
        self.requeue(edit, message, 2.0**message.error_count)
        return True


@contextmanager
def count_request(edit: Edit[Any], job: str, message: TrackedMessage, count_outcome: RequestCounter) -> Generator[None]:
    """Count one request, and name its job in the log. Its exceptions pass through."""
    try:
        with log_context(job):
            yield
    except RetryLater as error:
        count_outcome(edit.kind, "limited" if error.rate_limited else "outage" if error.outage else "later")
        raise
    except TokenExpired:
        count_outcome(edit.kind, "expired")
        raise
    except Exception:
        count_outcome(edit.kind, "failed")
        raise
    count_outcome(edit.kind, "gone" if message.response_lost else "done")
