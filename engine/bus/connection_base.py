"""Base of the bot's and the worker's client: the connection, the declared streams, and blobs.

Iterators over a subject continue through an outage of the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from engine.bus import subjects
from engine.bus.blobs import BlobStore
from engine.bus.connection import BrokerUnreachable, Credentials, connect, translate_errors, wait_until_closed
from engine.bus.deliveries import DeadLetters, RejectionLog
from engine.bus.subjects import BusLimits, declare_streams, has_consumer
from engine.contract import MalformedMessage, decode

log = logging.getLogger(__name__)

REPLY_SECONDS = 5.0
POLL_SECONDS = 0.1
POOL_FORBIDDEN = "The broker does not let this key serve {pool}: a key is for one worker name and its pools ({error})."
ReconnectCallback = Callable[[], Awaitable[None]]
V = TypeVar("V")


class OpenConnection(NamedTuple):
    """A connection to the broker; `has_worker_key`: we connected with a worker key."""

    client: Client
    limits: BusLimits
    reconnect_callbacks: list[ReconnectCallback]
    has_worker_key: bool


class BusBase:
    """One connection, shared by a whole process. Make it by `connect`, then call `declare`."""

    def __init__(self, connection: OpenConnection) -> None:
        self.client, self.limits, self._reconnect_callbacks, self.has_worker_key = connection
        self.js = self.client.jetstream(timeout=REPLY_SECONDS)
        self.rejections = RejectionLog()
        self.dead_letters = DeadLetters(self.js, self.rejections)
        self.blobs = BlobStore(self.js, self.limits.blob_age, has_worker_key=self.has_worker_key)
        self._is_closing = False

    @classmethod
    async def connect(
        cls,
        url: str,
        token: str = "",
        *,
        name: str = "darkroom",
        key: str = "",
        ca_file: Path | None = None,
        limits: BusLimits | None = None,
        timeout: float = 15.0,
    ) -> Self:
        """Connect to `url`. Raises `BrokerUnreachable` after `timeout` seconds, or where token or key is refused.

        `key` and `ca_file` are those of `engine.bus.connection.Credentials`. With a key we are the worker `name`.
        """
        reconnect_callbacks: list[ReconnectCallback] = []

        async def run_callbacks() -> None:
            for callback in list(reconnect_callbacks):
                try:
                    await callback()
                except BrokerUnreachable as error:
                    log.error("after the reconnection: %s", error)

        client = await connect(url, Credentials(name, token, key, ca_file), timeout, run_callbacks)
        return cls(OpenConnection(client, limits or BusLimits(), reconnect_callbacks, bool(key)))

    async def declare(self, pools: Sequence[str] = ()) -> None:
        """Make missing streams and buckets, now and after every reconnection, since the store may be new.

        With a worker key, only check that the key is for us and for `pools`: the bot makes what is missing.
        """
        self.blobs.forget_reads()
        with translate_errors("declare its streams"):
            await (self._check_access(pools) if self.has_worker_key else declare_streams(self.js, self.limits))
        if not self._reconnect_callbacks:
            self._reconnect_callbacks.append(partial(self.declare, pools))

    async def _check_access(self, pools: Sequence[str]) -> None:
        """Check access to the pools' consumers: the broker reports a forbidden request as a connection error."""
        old_error = self.client.last_error
        for pool in pools:
            check_task = asyncio.ensure_future(has_consumer(self.js, subjects.WORK, subjects.pool_consumer(pool)))
            try:
                while not check_task.done():
                    await asyncio.wait((check_task,), timeout=POLL_SECONDS)
                    error = self.client.last_error
                    if error is not old_error and "permissions violation" in str(error):
                        raise BrokerUnreachable(POOL_FORBIDDEN.format(pool=pool, error=error))
            finally:
                check_task.cancel()
            if not await check_task:
                log.info("no job was ever sent to the pool %s", pool)

    def add_reconnect_callback(self, callback: ReconnectCallback) -> None:
        """Run `callback` after every reconnection, once the streams exist again: a dispatcher then publishes again."""
        self._reconnect_callbacks.append(callback)

    @property
    def is_connected(self) -> bool:
        return self.client.is_connected

    async def wait_closed(self) -> None:
        """Return when we close the connection. Raises `ConnectionEnded` when it ends for good by itself."""
        await wait_until_closed(self.client, lambda: self._is_closing)

    async def close(self) -> None:
        self._is_closing = True
        try:
            with translate_errors("close the connection"):
                await asyncio.wait_for(self.client.close(), REPLY_SECONDS)
        except BrokerUnreachable as error:
            log.debug("%s", error)

    def _bucket(self, name: str) -> KeyValue:
        return KeyValue(name, subjects.kv_stream(name), subjects.kv_subject(name, ""), self.js, direct=True)

    @asynccontextmanager
    async def _listen(self, subject: str, handler: Callable[[Msg], None]) -> AsyncGenerator[None]:
        """Call `handler` with every message on a subject while the context lasts."""

        async def receive(msg: Msg) -> None:
            handler(msg)

        with translate_errors(f"listen to {subject}"):
            subscription = await self.client.subscribe(subject, cb=receive)
            await self.client.flush(timeout=int(REPLY_SECONDS))
        try:
            yield
        finally:
            if self.client.is_connected:
                await subscription.unsubscribe()

    async def _iter_latest(
        self, names: Sequence[str], value_type: type[V], key: Callable[[V], Hashable]
    ) -> AsyncIterator[V]:
        """Yield the values of the subjects of these names. A slow reader gets only the newest of each key."""
        latest: LatestByKey[Hashable, V] = LatestByKey()

        def store_value(msg: Msg) -> None:
            try:
                value = decode(msg.data, value_type)
            except MalformedMessage as error:
                self.dead_letters.record_bad_message(msg.subject, str(error))
            else:
                latest.put(key(value), value)

        async with AsyncExitStack() as listening:
            for name in names:
                await listening.enter_async_context(self._listen(name, store_value))
            while True:
                yield await latest.get()

    async def put_blob(self, content: bytes) -> str:
        """Store bytes and return their SHA-256, which names them."""
        with translate_errors("store a blob"):
            return await self.blobs.put(content)

    async def get_blob(self, sha256: str, limit: int) -> bytes:
        """Return a blob of at most `limit` bytes, checked against its name. Raises `BlobMissing`."""
        with translate_errors("fetch a blob"):
            return await self.blobs.get(sha256, limit)

    async def drop_read_blob(self, sha256: str) -> None:
        """Remove the copy of a blob that `get_blob` returned last; one that was stored since then stays."""
        with translate_errors("drop a blob"):
            await self.blobs.drop_read(sha256)

    async def drop_blob(self, sha256: str) -> None:
        """Remove a blob; a missing one is fine."""
        with translate_errors("drop a blob"):
            await self.blobs.drop(sha256)


K = TypeVar("K")


class LatestByKey(Generic[K, V]):
    """`put` never waits. `get` waits for a value and takes the key that has waited longest."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._has_values = asyncio.Event()

    def put(self, key: K, value: V) -> None:
        """Replace an earlier value in place: the key keeps its turn."""
        self._values[key] = value
        self._has_values.set()

    def put_first(self, key: K, value: V) -> None:
        """Replace an earlier value, and give the key the next turn."""
        self._values = {key: value} | {other: kept for other, kept in self._values.items() if other != key}
        self._has_values.set()

    async def get(self) -> V:
        while not self._values:
            self._has_values.clear()
            await self._has_values.wait()
        return self._values.pop(next(iter(self._values)))

    def __len__(self) -> int:
        return len(self._values)
