"""What both sides of the bus stand on: the connection, the declared streams, and blobs.

Knows the broker; nothing of which side it serves. An iterator over a subject goes on through an outage of the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Self, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from engine.bus import subjects
from engine.bus.blobs import Blobs
from engine.bus.deliveries import DeadLetters
from engine.bus.latest import Latest
from engine.bus.link import Unreachable, connect, reaching, stays
from engine.bus.streams import Kept, declare
from engine.job import Malformed, decode

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
Act = Callable[[], Awaitable[None]]
V = TypeVar("V")


class Station:
    """One connection, shared by everything in a process. Make it by `connect`, then `declare`."""

    def __init__(self, client: Client, kept: Kept, again: list[Act]) -> None:
        self.client, self.kept = client, kept
        self.js = client.jetstream(timeout=ANSWER_SECONDS)
        self.dead = DeadLetters(self.js)
        self.blobs = Blobs(self.js, kept.blob_age)
        self._again, self._left = again, False

    @classmethod
    async def connect(
        cls, url: str, token: str = "", *, name: str = "darkroom", kept: Kept | None = None, patience: float = 15.0
    ) -> Self:
        """Raises `Unreachable` when nobody answers at `url` within `patience` seconds, or the token is wrong."""
        again: list[Act] = []

        async def on_return() -> None:
            for act in list(again):
                try:
                    await act()
                except Unreachable as error:
                    log.error("after the reconnection: %s", error)

        return cls(await connect(url, token, name, patience, on_return), kept or Kept(), again)

    async def declare(self) -> None:
        """Makes the streams and buckets that are missing, now and after every reconnection (the store may be new)."""
        with reaching("declare its streams"):
            await declare(self.js, self.kept)
        if not self._again:
            self._again.append(self.declare)

    def on_return(self, act: Act) -> None:
        """`act` runs after every reconnection, when the streams are there again: a dispatcher publishes anew."""
        self._again.append(act)

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    async def hold(self) -> None:
        """Runs as long as the connection. Raises `Ended` when that is over for good, though nobody called `close`."""
        await stays(self.client, lambda: self._left)

    async def close(self) -> None:
        self._left = True
        try:
            with reaching("say goodbye"):
                await asyncio.wait_for(self.client.close(), ANSWER_SECONDS)
        except Unreachable as error:
            log.debug("%s", error)

    def _bucket(self, name: str) -> KeyValue:
        return KeyValue(name, subjects.kv_stream(name), subjects.kv_subject(name, ""), self.js, direct=True)

    @asynccontextmanager
    async def _listening(self, subject: str, on: Callable[[Msg], None]) -> AsyncIterator[None]:
        """Calls `on` with every message on a subject while the context lasts."""

        async def receive(msg: Msg) -> None:
            on(msg)

        with reaching(f"listen to {subject}"):
            subscription = await self.client.subscribe(subject, cb=receive)
            await self.client.flush(timeout=int(ANSWER_SECONDS))
        try:
            yield
        finally:
            if self.client.is_connected:
                await subscription.unsubscribe()

    async def _newest(self, subject: str, kind: type[V], key: Callable[[V], Hashable]) -> AsyncIterator[V]:
        """The values said on a subject: the newest of each key, whatever the reader's speed."""
        latest: Latest[Hashable, V] = Latest()

        def keep(msg: Msg) -> None:
            try:
                value = decode(msg.data, kind)
            except Malformed as error:
                self.dead.note(msg.subject, str(error))
            else:
                latest.put(key(value), value)

        async with self._listening(subject, keep):
            while True:
                yield await latest.get()

    async def put_blob(self, content: bytes) -> str:
        """Stores bytes; their SHA-256, which names them."""
        with reaching("store a blob"):
            return await self.blobs.put(content)

    async def get_blob(self, sha256: str, limit: int) -> bytes:
        """A blob of at most `limit` bytes, checked against its name. Raises `NoBlob`."""
        with reaching("fetch a blob"):
            return await self.blobs.get(sha256, limit)
