"""Deliveries: messages pulled from a durable consumer, decoded, then acknowledged or dead-lettered.

A message that does not decode is logged with its subject, counted and dead-lettered, so it never blocks later ones. A
message of a newer version is handed back, for an updated process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from engine.bus import subjects
from engine.bus.connection import REPLY_HEADER, translate_errors
from engine.bus.subjects import ensure_consumer
from engine.contract import MalformedMessage, OtherVersion, decode
from engine.process.log_format import escape

log = logging.getLogger(__name__)

T = TypeVar("T")
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 1.0
CONSUMER_POLL_SECONDS = 0.5  # between two looks for a consumer that the bot makes
OTHER_VERSION_PAUSE = 30.0  # until a message of a newer version is delivered again
OTHER_VERSION_TRIES = 2880  # one day
HAND_BACK_SECONDS = 1.0  # until another worker may take it
MAX_DEAD_BYTES = 1024 * 1024  # of a dead letter: the largest message plus headers would exceed the limit


def is_broker_reply(msg: Msg) -> bool:
    """Whether a message is the broker's reply to a request whose inbox was set to this subject.

    A client that may request stored data can redirect the reply to any subject, even one that it may not publish to.
    Such a reply carries the header of its origin.
    """
    return REPLY_HEADER in (msg.headers or {})


class DeadLetters:
    """The dead-letter stream. `count`: messages by the first token of their subject."""

    def __init__(self, js: JetStreamContext, rejections: RejectionLog) -> None:
        self.js = js
        self._rejections = rejections
        self.count: Counter[str] = Counter()

    async def store(self, msg: Msg, reason: str) -> None:
        """Store the message as a dead letter, then remove it from its stream: never in the other order.

        A large message is truncated; its header `Bytes` holds the full length.
        """
        self.record_bad_message(msg.subject, reason)
        with translate_errors("dead-letter a message"):
            one_line = reason.replace("\r", " ").replace("\n", " ")[:500]
            headers = {"Reason": one_line, "Bytes": str(len(msg.data))}
            payload = msg.data[:MAX_DEAD_BYTES]
            await self.js.publish(
                subjects.make_dead_letter_subject(msg.subject), payload, headers=headers, timeout=ANSWER_SECONDS
            )
            await msg.term()

    def record_bad_message(self, subject: str, reason: str) -> None:
        """Log and count a bad message; used alone for messages that no stream stores (frames)."""
        self.count[subject.split(".", 1)[0]] += 1
        self._rejections.record(f"a message on {subject}", reason)


@dataclass(frozen=True)
class BusMessage(Generic[T]):
    """One value and the means to answer its message. Every method raises `BrokerUnreachable` in an outage."""

    value: T
    nats_msg: Msg
    dead_letters: DeadLetters

    @property
    def delivery_count(self) -> int:
        """How often it was delivered, this time included."""
        return self.nats_msg.metadata.num_delivered

    @property
    def pending_count(self) -> int:
        """How many messages wait at the broker behind this one."""
        return self.nats_msg.metadata.num_pending

    async def ack(self) -> None:
        """Acknowledge, and wait until the broker has stored that: after a plain ack, a crash repeats the message."""
        with translate_errors("acknowledge"):
            await self.nats_msg.ack_sync(timeout=ANSWER_SECONDS)

    async def nak(self, delay: float = 0.0) -> None:
        """Hand the message back for redelivery, at once or after `delay` seconds."""
        with translate_errors("hand back"):
            await self.nats_msg.nak(delay=delay or None)

    async def in_progress(self) -> None:
        """Restart the broker's wait for an acknowledgement."""
        with translate_errors("extend a delivery"):
            await self.nats_msg.in_progress()

    async def dead_letter(self, reason: str) -> None:
        """Dead-letter the message; it does not come back."""
        await self.dead_letters.store(self.nats_msg, reason)


class PullConsumer(Generic[T]):
    """Pulls values of one type from one durable consumer, and makes the consumer where it is missing.

    `has_worker_key`: our key may not make it, so retry until the bot has sent a first job there. `rests`: after a
    message of a newer version pull nothing for a while, and leave it to others.

    Requests are short and repeated, since a restarted broker forgets them. Each has its own reply subject, so the end
    of an old request is never taken for the end of the current one.
    """

    def __init__(
        self,
        client: Client,
        stream: str,
        config: ConsumerConfig,
        value_type: type[T],
        dead_letters: DeadLetters,
        batch: int = 1,
        has_worker_key: bool = False,
        *,
        rests: bool = False,
    ) -> None:
        assert config.durable_name is not None
        self._client = client
        self._js = dead_letters.js
        self._stream = stream
        self._config = config
        self._value_type = value_type
        self._dead_letters = dead_letters
        self._batch = batch
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{config.durable_name}"
        self._inbox = client.new_inbox()
        self._queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._is_ensured = False
        self._has_worker_key = has_worker_key
        self._reply_numbers = itertools.count()
        self._reply_subject = ""
        self._outstanding = 0  # messages that the current request may still bring
        self._expires_at = 0.0  # when the request expires, on the loop's clock
        self._rests = rests
        self._resting_until = 0.0  # on the loop's clock

    async def next_message(self, timeout: float, *, wait: bool = True) -> BusMessage[T] | None:
        """Return the next good value, or None after `timeout` seconds. Raises `BrokerUnreachable`.

        With `wait` False, return only a message that no waiting worker has taken.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if loop.time() < self._resting_until:
            await asyncio.sleep(min(timeout, self._resting_until - loop.time()) if wait else 0)
            return None
        with translate_errors(f"pull from {self._stream}"):
            while (remaining := deadline - loop.time()) > 0:
                await self._request_batch(loop, remaining, wait)
                msg = await self._receive(min(remaining, self._expires_at - loop.time()))
                if msg is not None and (message := await self._decode(msg)) is not None:
                    return message
                if loop.time() < self._resting_until or (self._outstanding == 0 and not wait):
                    break
        return None

    async def _request_batch(self, loop: asyncio.AbstractEventLoop, seconds: float, wait: bool) -> None:
        if not self._queue.empty() or (self._outstanding > 0 and loop.time() < self._expires_at):
            return
        await self._prepare()
        expires = max(seconds, 0.05)
        self._reply_subject = f"{self._inbox}.{next(self._reply_numbers)}"
        self._outstanding = self._batch
        self._expires_at = loop.time() + expires
        options = b'"expires":%d' % int(expires * 1e9) if wait else b'"no_wait":true'
        request = b'{"batch":%d,%s}' % (self._batch, options)
        await self._client.publish(self._next_subject, request, self._reply_subject)

    async def _prepare(self) -> None:
        if self._subscription is None:
            self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._on_message)
        if not self._is_ensured and not self._has_worker_key:
            await ensure_consumer(self._js, self._stream, self._config)
        self._is_ensured = True

    async def _on_message(self, msg: Msg) -> None:
        await self._queue.put(msg)

    async def _receive(self, seconds: float) -> Msg | None:
        """Return a message of the stream; None on timeout or when the request has ended."""
        try:
            async with asyncio.timeout(max(seconds, 0.001)):
                msg = await self._queue.get()
        except TimeoutError:
            self._outstanding = 0
            return None
        if not msg.subject.startswith(self._inbox):
            self._outstanding -= 1
            return msg
        if msg.subject == self._reply_subject:
            await self._handle_status((msg.headers or {}).get("Status", ""))
        return None

    async def _handle_status(self, status: str) -> None:
        """Handle a status message. 404 and 408: no message in time. For others the consumer may be gone."""
        self._outstanding = 0
        if status not in {"404", "408"}:
            self._is_ensured = False
            await asyncio.sleep(CONSUMER_POLL_SECONDS if self._has_worker_key else 0.1)

    async def _decode(self, msg: Msg) -> BusMessage[T] | None:
        try:
            if is_broker_reply(msg):
                raise MalformedMessage("it is a reply of the broker that a client redirected to this subject")
            return BusMessage(decode(msg.data, self._value_type), msg, self._dead_letters)
        except MalformedMessage as error:
            is_newer = isinstance(error, OtherVersion) and error.is_newer
            if is_newer and msg.metadata.num_delivered < OTHER_VERSION_TRIES:
                log.warning("%s stays in the queue: %s", msg.subject, error)
                await msg.nak(delay=HAND_BACK_SECONDS if self._rests else OTHER_VERSION_PAUSE)
                self._resting_until = asyncio.get_running_loop().time() + OTHER_VERSION_PAUSE if self._rests else 0.0
            else:
                await self._dead_letters.store(msg, str(error))
            return None

    async def close(self) -> None:
        """Wait for the current request to end, and hand back what it brings.

        Closing at once would lose a message that the server has already assigned to us, until its lease expires.
        """
        if self._subscription is None:
            return
        with translate_errors("stop pulling"):
            await self._hand_back()
            try:
                await self._subscription.drain()
            except (nats.errors.BadSubscriptionError, nats.errors.ConnectionClosedError):
                log.debug("the subscription had already ended")
            self._subscription = None

    async def _hand_back(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CLOSE_SECONDS
        while not self._queue.empty() or (self._outstanding > 0 and loop.time() < min(deadline, self._expires_at)):
            msg = await self._receive(min(deadline, self._expires_at) - loop.time())
            if msg is not None:
                await msg.nak()


MAX_KEPT = 64  # refusals kept
REPEAT_SECONDS = 600.0  # seconds until the same one is logged again
# at most so many log lines in so many seconds
MAX_LINES = 20
WINDOW_SECONDS = 60.0
SUBJECT_CHARS = 120
REASON_CHARS = 300
RECENT_SECONDS = 60.0  # seconds: a live worker repeats its message long before


@dataclass(frozen=True)
class Rejection:
    """Equal messages of one sender: how often they came, the last time, and the last time they were logged."""

    subject: str
    reason: str
    count: int
    last_at: float
    logged_at: float | None = None

    def __str__(self) -> str:
        return f"{self.subject}, which is refused: {self.reason}"


class RejectionLog:
    """Counts refusals and logs them at a bounded rate. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rejections: OrderedDict[tuple[str, str], Rejection] = OrderedDict()
        self._window_start = clock()
        self._logged_lines = 0
        self._suppressed = 0

    def record(self, subject: str, reason: str) -> None:
        """Count a refusal. `subject` says what was sent, and by whom. Both may contain untrusted text."""
        key = _shorten(subject, SUBJECT_CHARS), _shorten(reason, REASON_CHARS)
        now = self._clock()
        earlier = self._rejections.pop(key, None)
        rejection = (
            replace(earlier, count=earlier.count + 1, last_at=now) if earlier else Rejection(*key, count=1, last_at=now)
        )
        self._rejections[key] = (
            self._log_rejection(rejection, now)
            if rejection.logged_at is None or now - rejection.logged_at >= REPEAT_SECONDS
            else rejection
        )
        if len(self._rejections) > MAX_KEPT:
            self._rejections.popitem(last=False)

    def list_recent(self) -> list[Rejection]:
        """Return what was refused within the last minute, newest first."""
        return [
            rejection
            for rejection in reversed(self._rejections.values())
            if self._clock() - rejection.last_at <= RECENT_SECONDS
        ]

    def _log_rejection(self, rejection: Rejection, now: float) -> Rejection:
        """Log the refusal and return it with its log time, unless the log has enough lines."""
        if now - self._window_start >= WINDOW_SECONDS:
            self._window_start = now
            self._logged_lines = 0
        if self._logged_lines >= MAX_LINES:
            self._suppressed += 1
            return rejection
        self._logged_lines += 1
        suffix = f" ({rejection.count} times by now)" if rejection.count > 1 else ""
        suffix += f"; {self._suppressed} others were refused meanwhile" if self._suppressed else ""
        log.warning("%s%s", rejection, suffix)
        self._suppressed = 0
        return replace(rejection, logged_at=now)


def _shorten(text: str, limit: int) -> str:
    """Return `text` on one line, of at most `limit` characters."""
    shortened = escape(text[:limit])
    return shortened if len(shortened) <= limit and len(text) <= limit else f"{shortened[: limit - 1]}…"
