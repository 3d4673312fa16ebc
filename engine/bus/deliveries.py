"""Messages that must be answered: pulled from a durable consumer, decoded, acknowledged, or laid aside as dead.

Knows pulling, acknowledging and dead letters; nothing of what a message means. What does not decode is logged with its
subject, counted and dead-lettered: a bad message never stops the ones behind it. One of a newer version is good for
somebody else: it is handed back.
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
ABSENT_SECONDS = 0.5  # until we ask again for a consumer that others make
LATER_SECONDS = 30.0  # until a message of a newer version is offered again, to whoever has been updated by then
LATER_TRIES = 2880  # a day of it
KEPT_BYTES = 1024 * 1024  # of a dead letter: with headers added, the largest message would be one too large


def reflected(msg: Msg) -> bool:
    """Whether it is the broker's answer to a request, sent to a subject that the request named as its inbox.

    Whoever may ask the broker for what it has stored may have the answer sent anywhere, also where he may not publish.
    Such an answer says whence it comes.
    """
    return ANSWERED in (msg.headers or {})


class DeadLetters:
    """Where messages go that nobody can use; `count` says how many, by the first token of their subject."""

    def __init__(self, js: JetStreamContext, refused: Refusals) -> None:
        self._js, self._refused = js, refused
        self.count: Counter[str] = Counter()

    async def lay_aside(self, msg: Msg, reason: str) -> None:
        """Keeps the message in the dead-letter stream, then takes it out of its own: never the other way round.

        Of a large one the beginning is kept; its header `Bytes` says how long it was.
        """
        self.note(msg.subject, reason)
        with reaching("lay a message aside"):
            one_line = reason.replace("\r", " ").replace("\n", " ")[:500]
            headers = {"Reason": one_line, "Bytes": str(len(msg.data))}
            kept = msg.data[:KEPT_BYTES]
            await self._js.publish(subjects.dead(msg.subject), kept, headers=headers, timeout=ANSWER_SECONDS)
            await msg.term()

    def note(self, subject: str, reason: str) -> None:
        """For messages that no stream keeps (frames): logged and counted."""
        self.count[subject.split(".", 1)[0]] += 1
        self._refused.note(f"a message on {subject}", reason)


@dataclass(frozen=True)
class Delivered(Generic[T]):
    """One value and the means to answer for it. Every method raises `Unreachable` when the broker is away."""

    value: T
    msg: Msg
    dead: DeadLetters

    @property
    def tries(self) -> int:
        """How often it was delivered, this time included."""
        return self.msg.metadata.num_delivered

    @property
    def pending(self) -> int:
        """How many wait at the broker behind this one."""
        return self.msg.metadata.num_pending

    async def ack(self) -> None:
        """Done; returns when the broker has written that down (a crash right after a plain ack repeats the message)."""
        with reaching("acknowledge"):
            await self.msg.ack_sync(timeout=ANSWER_SECONDS)

    async def nak(self, delay: float = 0.0) -> None:
        """Not done: deliver it again, at once or after `delay` seconds."""
        with reaching("hand back"):
            await self.msg.nak(delay=delay or None)

    async def in_progress(self) -> None:
        """Still at it: the wait for an answer starts anew."""
        with reaching("say that work goes on"):
            await self.msg.in_progress()

    async def lay_aside(self, reason: str) -> None:
        """Gives the message up: it goes to the dead letters and does not come back."""
        await self.dead.lay_aside(self.msg, reason)


class Pull(Generic[T]):
    """Pulls values of one kind from one durable consumer, which it makes when it is not there.

    `scoped`: it may not, so it asks again now and then until the bot has sent a first job there.

    Requests are short and repeated, since a broker that restarts forgets them. Each has its own reply subject: the end
    of an old request is never taken for the end of the present one.
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
        self._owed = 0  # messages that the present request may still bring
        self._until = 0.0  # when it lapses, on the loop's clock

    async def next(self, timeout: float, *, wait: bool = True) -> Delivered[T] | None:
        """The next good value, or None after `timeout` seconds. Raises `Unreachable`.

        Without `wait` only one that lies there because nobody who waits has been given it.
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
        """A message of the stream; None when time is up or the request ended."""
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
        """A status in place of a message. 404 and 408: nothing there in time. Else the consumer may be gone."""
        self._owed = 0
        if status not in {"404", "408"}:
            self._ensured = False
            await asyncio.sleep(ABSENT_SECONDS if self._scoped else 0.1)

    async def _decoded(self, msg: Msg) -> Delivered[T] | None:
        try:
            if reflected(msg):
                raise Malformed("it is no message of its own, but an answer of the broker that somebody sent here")
            return Delivered(decode(msg.data, self._kind), msg, self._dead)
        except Malformed as error:
            if isinstance(error, Newer) and msg.metadata.num_delivered < LATER_TRIES:
                log.warning("%s stays where it is: %s", msg.subject, error)
                await msg.nak(delay=LATER_SECONDS)
            else:
                await self._dead.lay_aside(msg, str(error))
            return None

    async def close(self) -> None:
        """Waits for the present request to end, and hands back what it brings.

        Leaving at once would lose a message that the server has already decided to send us, until its lease runs out.
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
