"""Deliveries: messages pulled from a durable consumer, decoded, then acknowledged or dead-lettered.

A message that does not decode is logged with its subject, counted and dead-lettered, so it never blocks later ones. A
message of a newer version is handed back for an updated process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from engine.bus import subjects
from engine.bus.hearing import ANSWERED
from engine.bus.link import reaching
from engine.bus.refusals import Refusals
from engine.bus.streams import ensure_consumer
from engine.job import Malformed, Newer, decode

log = logging.getLogger(__name__)

T = TypeVar("T")
ANSWER_SECONDS = 5.0
CLOSING_SECONDS = 1.0
ABSENT_SECONDS = 0.5  # between two looks for a consumer that the bot makes
LATER_SECONDS = 30.0  # until a message of a newer version is delivered again
LATER_TRIES = 2880  # one day
KEPT_BYTES = 1024 * 1024  # of a dead letter: the largest message plus headers would exceed the limit


def reflected(msg: Msg) -> bool:
    """Whether a message is the broker's reply to a request whose inbox was set to this subject.

    A client that may request stored data can redirect the reply to any subject, even one that it may not publish to.
    Such a reply carries the header of its origin.
    """
    return ANSWERED in (msg.headers or {})


class DeadLetters:
    """The dead-letter stream. `count`: messages by the first token of their subject."""

    def __init__(self, js: JetStreamContext, refused: Refusals) -> None:
        self._js, self._refused = js, refused
        self.count: Counter[str] = Counter()

    async def lay_aside(self, msg: Msg, reason: str) -> None:
        """Store the message as a dead letter, then remove it from its stream: never in the other order.

        A large message is truncated; its header `Bytes` holds the full length.
        """
        self.note(msg.subject, reason)
        with reaching("dead-letter a message"):
            one_line = reason.replace("\r", " ").replace("\n", " ")[:500]
            headers = {"Reason": one_line, "Bytes": str(len(msg.data))}
            kept = msg.data[:KEPT_BYTES]
            await self._js.publish(subjects.dead(msg.subject), kept, headers=headers, timeout=ANSWER_SECONDS)
            await msg.term()

    def note(self, subject: str, reason: str) -> None:
        """Log and count a bad message; used alone for messages that no stream stores (frames)."""
        self.count[subject.split(".", 1)[0]] += 1
        self._refused.note(f"a message on {subject}", reason)


@dataclass(frozen=True)
class Delivered(Generic[T]):
    """One value and the means to answer its message. Every method raises `Unreachable` when the broker is away."""

    value: T
    msg: Msg
    dead: DeadLetters

    @property
    def tries(self) -> int:
        """How often it was delivered, this time included."""
        return self.msg.metadata.num_delivered

    @property
    def pending(self) -> int:
        """How many messages wait at the broker behind this one."""
        return self.msg.metadata.num_pending

    async def ack(self) -> None:
        """Acknowledge, and wait until the broker has stored that: after a plain ack, a crash repeats the message."""
        with reaching("acknowledge"):
            await self.msg.ack_sync(timeout=ANSWER_SECONDS)

    async def nak(self, delay: float = 0.0) -> None:
        """Hand the message back for redelivery, at once or after `delay` seconds."""
        with reaching("hand back"):
            await self.msg.nak(delay=delay or None)

    async def in_progress(self) -> None:
        """Restart the broker's wait for an acknowledgement."""
        with reaching("extend a delivery"):
            await self.msg.in_progress()

    async def lay_aside(self, reason: str) -> None:
        """Dead-letter the message; it does not come back."""
        await self.dead.lay_aside(self.msg, reason)


class Pull(Generic[T]):
    """Pulls values of one type from one durable consumer, and makes the consumer where it is missing.

    `scoped`: our key may not make it, so retry until the bot has sent a first job there.

    Requests are short and repeated, since a restarted broker forgets them. Each has its own reply subject, so the end
    of an old request is never taken for the end of the current one.
    """

    def __init__(
        self, client: Client, js: JetStreamContext, stream: str, config: ConsumerConfig, kind: type[T],
        dead: DeadLetters, batch: int = 1, scoped: bool = False,
    ) -> None:  # fmt: skip
        assert config.durable_name is not None
        self._client, self._js, self._stream, self._config = client, js, stream, config
        self._kind, self._dead, self._batch = kind, dead, batch
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{config.durable_name}"
        self._inbox = client.new_inbox()
        self._queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._subscription: Subscription | None = None
        self._ensured, self._scoped = False, scoped
        self._numbers = itertools.count()
        self._reply = ""
        self._owed = 0  # messages that the current request may still bring
        self._until = 0.0  # when the request expires, on the loop's clock

    async def next(self, timeout: float, *, wait: bool = True) -> Delivered[T] | None:
        """Return the next good value, or None after `timeout` seconds. Raises `Unreachable`.

        With `wait` False, return only a message that no waiting worker has taken.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        with reaching(f"pull from {self._stream}"):
            while (left := end - loop.time()) > 0:
                await self._ask(loop, left, wait)
                msg = await self._received(min(left, self._until - loop.time()))
                if msg is not None and (delivered := await self._decoded(msg)) is not None:
                    return delivered
                if self._owed == 0 and not wait:
                    break
        return None

    async def _ask(self, loop: asyncio.AbstractEventLoop, seconds: float, wait: bool) -> None:
        if not self._queue.empty() or (self._owed > 0 and loop.time() < self._until):
            return
        await self._prepare()
        expires = max(seconds, 0.05)
        self._reply = f"{self._inbox}.{next(self._numbers)}"
        self._owed, self._until = self._batch, loop.time() + expires
        how = b'"expires":%d' % int(expires * 1e9) if wait else b'"no_wait":true'
        request = b'{"batch":%d,%s}' % (self._batch, how)
        await self._client.publish(self._next, request, self._reply)

    async def _prepare(self) -> None:
        if self._subscription is None:
            self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._on_message)
        if not self._ensured and not self._scoped:
            await ensure_consumer(self._js, self._stream, self._config)
        self._ensured = True

    async def _on_message(self, msg: Msg) -> None:
        await self._queue.put(msg)

    async def _received(self, seconds: float) -> Msg | None:
        """Return a message of the stream; None on timeout or when the request has ended."""
        try:
            async with asyncio.timeout(max(seconds, 0.001)):
                msg = await self._queue.get()
        except TimeoutError:
            self._owed = 0
            return None
        if not msg.subject.startswith(self._inbox):
            self._owed -= 1
            return msg
        if msg.subject == self._reply:
            await self._ended((msg.headers or {}).get("Status", ""))
        return None

    async def _ended(self, status: str) -> None:
        """Handle a status message. 404 and 408: no message in time. For others the consumer may be gone."""
        self._owed = 0
        if status not in {"404", "408"}:
            self._ensured = False
            await asyncio.sleep(ABSENT_SECONDS if self._scoped else 0.1)

    async def _decoded(self, msg: Msg) -> Delivered[T] | None:
        try:
            if reflected(msg):
                raise Malformed("it is a reply of the broker that a client redirected to this subject")
            return Delivered(decode(msg.data, self._kind), msg, self._dead)
        except Malformed as error:
            if isinstance(error, Newer) and msg.metadata.num_delivered < LATER_TRIES:
                log.warning("%s stays in the queue: %s", msg.subject, error)
                await msg.nak(delay=LATER_SECONDS)
            else:
                await self._dead.lay_aside(msg, str(error))
            return None

    async def close(self) -> None:
        """Wait for the current request to end, and hand back what it brings.

        Closing at once would lose a message that the server has already assigned to us, until its lease expires.
        """
        if self._subscription is None:
            return
        with reaching("stop pulling"):
            await self._hand_back()
            try:
                await self._subscription.drain()
            except (nats.errors.BadSubscriptionError, nats.errors.ConnectionClosedError):
                log.debug("the subscription had already ended")
            self._subscription = None

    async def _hand_back(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + CLOSING_SECONDS
        while not self._queue.empty() or (self._owed > 0 and loop.time() < min(end, self._until)):
            msg = await self._received(min(end, self._until) - loop.time())
            if msg is not None:
                await msg.nak()
