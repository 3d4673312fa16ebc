"""Base of the bot's and the worker's client: the connection, the declared streams, and blobs.

Iterators over a subject continue through an outage of the broker. A blob is an object of bytes, named by its SHA-256;
every write and every read checks the name against the bytes. The layout resembles that of the client library's object
store, which we do not use. It would need the rights to purge and to read the whole stream, and every writer could purge
by a header. A worker key grants none of this: a worker only writes, and reads blobs whose name it knows. Each chunk has
its own subject, on which the stream keeps only the newest message.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

import msgspec
from cachetools import LRUCache
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError
from nats.js.kv import KeyValue

from engine.bus import subjects
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


CHUNK_BYTES = 1024 * 1024
SMALL_BYTES = 128 * 1024  # bytes
MAX_REMEMBERED = 1024  # blobs that were read and perhaps will be dropped
MAX_CHUNKS = 1024  # removed one by one: 1 GiB; an untrusted entry may claim any number


class BlobMissing(LookupError):
    """The blob is missing, too large, or its bytes do not match its name."""


class BlobEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An object's metadata as its bucket stores it (NATS ADR-20). `chunk_id` names the subjects of its chunks."""

    name: str
    bucket: str
    chunk_id: str = msgspec.field(name="nuid")
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False


class BlobStore:
    """The blob bucket. `max_age`: time to live in seconds. `has_worker_key`: our key may not purge it."""

    def __init__(self, js: JetStreamContext, max_age: float, *, has_worker_key: bool = False) -> None:
        self._js = js
        self._has_worker_key = has_worker_key
        self._reuse_age = timedelta(seconds=max_age / 2)
        self._read_numbers: LRUCache[str, list[int]] = LRUCache(MAX_REMEMBERED)  # SHA-256 → its messages in the stream

    async def put(self, content: bytes) -> str:
        """Store the bytes and return their SHA-256; reuse a copy younger than half of `max_age`."""
        sha_bytes = await _hash_content(content)
        sha = sha_bytes.hex()
        old_entry = await self._read_entry(sha)
        if old_entry is not None and self._is_fresh(old_entry):
            return sha
        chunk_id = secrets.token_hex(16)
        chunks = range(0, len(content), CHUNK_BYTES)
        for number, start in enumerate(chunks):
            await self._js.publish(subjects.blob_chunk(chunk_id, number), content[start : start + CHUNK_BYTES])
        digest = f"SHA-256={base64.urlsafe_b64encode(sha_bytes).decode()}"
        written = datetime.now(UTC).isoformat()
        await self._write_entry(BlobEntry(sha, subjects.BLOBS, chunk_id, len(content), written, len(chunks), digest))
        if old_entry is not None:
            await self._remove_chunks(old_entry)
        return sha

    def _is_fresh(self, entry: BlobEntry) -> bool:
        try:
            return datetime.now(UTC) - datetime.fromisoformat(entry.mtime) < self._reuse_age
        except (ValueError, TypeError):
            return False

    async def _read_entry(self, sha: str) -> BlobEntry | None:
        """Return the blob's entry; None where there is none or it is unreadable."""
        return (await self._find_entry(sha))[0]

    async def _find_entry(self, sha: str) -> tuple[BlobEntry | None, int]:
        """Return the blob's entry as `_read_entry` does, and its message's number in the stream."""
        try:
            msg = await self._js.get_msg(subjects.BLOBS_STREAM, subject=subjects.blob_entry(sha), direct=True)
            entry = msgspec.json.decode(msg.data or b"", type=BlobEntry)
        except (NotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            return None, 0
        return (None if entry.deleted or not _is_token(entry.chunk_id) else entry), msg.seq or 0

    async def _write_entry(self, entry: BlobEntry) -> None:
        await self._js.publish(subjects.blob_entry(entry.name), msgspec.json.encode(entry))

    async def _remove_chunks(self, entry: BlobEntry) -> None:
        """Remove the chunks. The broker overwrites their bytes in its file, as it does not for a purge.

        A client that may not erase replaces them with empty ones.
        """
        for number in range(min(entry.chunks, MAX_CHUNKS)):
            subject = subjects.blob_chunk(entry.chunk_id, number)
            if self._has_worker_key:
                await self._js.publish(subject, b"")
                continue
            with suppress(NotFoundError):
                msg = await self._js.get_msg(subjects.BLOBS_STREAM, subject=subject, direct=True)
                await self._erase_message(msg.seq or 0)

    async def _erase_message(self, number: int) -> None:
        """Remove one message and overwrite its bytes; one that is gone is fine."""
        with suppress(APIError):
            await self._js.delete_msg(subjects.BLOBS_STREAM, number)

    async def get(self, sha: str, limit: int) -> bytes:
        """Return the bytes. Raises `BlobMissing`, also for more than `limit` bytes."""
        entry, number = await self._find_entry(sha)
        if entry is None:
            raise BlobMissing(f"There is no blob {sha[:12]}.")
        if not 0 <= entry.size <= limit:
            raise BlobMissing(f"Blob {sha[:12]} is larger than {limit} bytes.")
        try:
            content, chunk_numbers = await self._read_chunks(subjects.blob_chunk(entry.chunk_id, ">"), entry.size)
        except NotFoundError as error:
            raise BlobMissing(f"There is no blob {sha[:12]}.") from error
        if (await _hash_content(content)).hex() != sha:
            raise BlobMissing(f"Blob {sha[:12]} is damaged.")
        self._read_numbers[sha] = [number, *chunk_numbers]
        return content

    async def _read_chunks(self, subject: str, size: int) -> tuple[bytes, list[int]]:
        """Read chunk after chunk by direct requests: no consumer, and no waiting for a missing chunk.

        Return the bytes, and the chunks' numbers in the stream.
        """
        content = bytearray()
        numbers = [0]
        while len(content) < size:
            position = numbers[-1] + 1
            msg = await self._js.get_msg(subjects.BLOBS_STREAM, seq=position, subject=subject, direct=True, next=True)
            if not msg.data:
                break
            content += msg.data
            numbers.append(msg.seq or 0)
        return bytes(content), numbers[1:]

    async def drop_read(self, sha: str) -> None:
        """Remove the copy that `get` returned last; one that was stored since then stays. Not with a worker's key.

        A blob of which `get` remembers nothing is removed as it is.
        """
        numbers = self._read_numbers.pop(sha, None)
        if numbers is None:
            await self.drop(sha)
            return
        for number in numbers:
            await self._erase_message(number)

    def forget_reads(self) -> None:
        """Forget which copies were read: a new stream counts its messages from 1 again."""
        self._read_numbers.clear()

    async def drop(self, sha: str) -> None:
        """Remove a blob that is no longer needed; a missing one is fine."""
        entry, number = await self._find_entry(sha)
        if entry is None:
            return
        if self._has_worker_key:
            await self._write_entry(BlobEntry(sha, subjects.BLOBS, entry.chunk_id, deleted=True))
        else:
            await self._erase_message(number)
        await self._remove_chunks(entry)


def _is_token(chunk_id: str) -> bool:
    """Whether `chunk_id`, which comes from outside, is one subject token."""
    return chunk_id.isascii() and chunk_id.isalnum()


async def _hash_content(content: bytes) -> bytes:
    """Return the SHA-256. Small content is hashed on the loop: a thread costs more than the hash."""
    if len(content) <= SMALL_BYTES:
        return hashlib.sha256(content).digest()
    return await asyncio.to_thread(lambda: hashlib.sha256(content).digest())
