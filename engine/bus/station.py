"""Base of the bot's and the worker's client: the connection, the declared streams, and blobs.

Iterators over a subject continue through an outage of the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from engine.bus import subjects
from engine.bus.blobs import Blobs
from engine.bus.deliveries import DeadLetters
from engine.bus.latest import Latest
from engine.bus.link import Right, Unreachable, connect, reaching, stays
from engine.bus.refusals import Refusals
from engine.bus.streams import Kept, declare, is_there
from engine.job import Malformed, decode

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
GLANCE_SECONDS = 0.1
FORBIDDEN = "The broker does not let this key serve {pool}: a key is for one worker name and its pools ({error})."
Act = Callable[[], Awaitable[None]]
V = TypeVar("V")


class Station:
    """One connection, shared by a whole process. Make it by `connect`, then call `declare`."""

    def __init__(self, client: Client, kept: Kept, again: list[Act], scoped: bool = False) -> None:
        self.client, self.kept, self.scoped = client, kept, scoped  # scoped: connected with a worker key
        self.js = client.jetstream(timeout=ANSWER_SECONDS)
        self.refused = Refusals()
        self.dead = DeadLetters(self.js, self.refused)
        self.blobs = Blobs(self.js, kept.blob_age, scoped=scoped)
        self._again, self._left = again, False

    @classmethod
    async def connect(
        cls, url: str, token: str = "", *, name: str = "darkroom", key: str = "", authority: Path | None = None,
        kept: Kept | None = None, patience: float = 15.0,
    ) -> Self:  # fmt: skip
        """Connect to `url`. Raises `Unreachable` after `patience` seconds, or where token or key is refused.

        `key` and `authority` are those of `engine.bus.link.Right`. With a key we are the worker `name`.
        """
        again: list[Act] = []

        async def on_return() -> None:
            for act in list(again):
                try:
                    await act()
                except Unreachable as error:
                    log.error("after the reconnection: %s", error)

        client = await connect(url, Right(name, token, key, authority), patience, on_return)
        return cls(client, kept or Kept(), again, bool(key))

    async def declare(self, pools: Sequence[str] = ()) -> None:
        """Make missing streams and buckets, now and after every reconnection, since the store may be new.

        With a worker key, only check that the key is for us and for `pools`: the bot makes what is missing.
        """
        with reaching("declare its streams"):
            await (self._look(pools) if self.scoped else declare(self.js, self.kept))
        if not self._again:
            self._again.append(partial(self.declare, pools))

    async def _look(self, pools: Sequence[str]) -> None:
        """Check access to the pools' consumers: the broker reports a forbidden request as a connection error."""
        before = self.client.last_error
        for pool in pools:
            asked = asyncio.ensure_future(is_there(self.js, subjects.WORK, subjects.pool_consumer(pool)))
            try:
                while not asked.done():
                    await asyncio.wait((asked,), timeout=GLANCE_SECONDS)
                    error = self.client.last_error
                    if error is not before and "permissions violation" in str(error):
                        raise Unreachable(FORBIDDEN.format(pool=pool, error=error))
            finally:
                asked.cancel()
            if not await asked:
                log.info("no job was ever sent to the pool %s", pool)

    def on_return(self, act: Act) -> None:
        """Run `act` after every reconnection, once the streams exist again; a dispatcher publishes again there."""
        self._again.append(act)

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    async def hold(self) -> None:
        """Return when we close the connection. Raises `Ended` when it ends for good by itself."""
        await stays(self.client, lambda: self._left)

    async def close(self) -> None:
        self._left = True
        try:
            with reaching("close the connection"):
                await asyncio.wait_for(self.client.close(), ANSWER_SECONDS)
        except Unreachable as error:
            log.debug("%s", error)

    def _bucket(self, name: str) -> KeyValue:
        return KeyValue(name, subjects.kv_stream(name), subjects.kv_subject(name, ""), self.js, direct=True)

    @asynccontextmanager
    async def _listening(self, subject: str, on: Callable[[Msg], None]) -> AsyncIterator[None]:
        """Call `on` with every message on a subject while the context lasts."""

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
        """Yield a subject's values. A slow reader gets only the newest of each key."""
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
        """Store bytes and return their SHA-256, which names them."""
        with reaching("store a blob"):
            return await self.blobs.put(content)

    async def get_blob(self, sha256: str, limit: int) -> bytes:
        """Return a blob of at most `limit` bytes, checked against its name. Raises `NoBlob`."""
        with reaching("fetch a blob"):
            return await self.blobs.get(sha256, limit)
