"""The bot's client of the bus: dispatches jobs, reads results and previews, cancels, tracks workers, sends requests.

Uses no SQL and no Discord. While the broker is away, calls raise `BrokerUnreachable`; iterators wait instead.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace
from nats.aio.msg import Msg
from nats.errors import BadSubscriptionError, ConnectionClosedError, NoRespondersError
from nats.js.errors import APIError, NotFoundError
from nats.js.kv import KV_OP

from engine.bus import subjects
from engine.bus.connection import REPLY_HEADER, BrokerUnreachable, has_reply_header, translate_errors
from engine.bus.connection_base import BusBase, OpenConnection
from engine.bus.deliveries import BusMessage, PullConsumer, RejectionLog
from engine.bus.subjects import ensure_consumer, pool_consumer_config, result_consumer_config
from engine.contract import (
    AmendJob,
    ControlMessage,
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    Frame,
    Job,
    JobModelLoading,
    MalformedMessage,
    ModelProgress,
    Name,
    Presence,
    Result,
    decode,
    encode,
)

log = logging.getLogger(__name__)

STREAM_FULL = 10077  # JetStream's code for a full stream, also for a second message on a full subject
RESULTS_AT_ONCE = 64
# attempts, and seconds between them
DESCRIBE_TRIES = 4
DESCRIBE_PAUSE = 0.5
# longer than a worker spends on one request
DESCRIBE_TIMEOUT = 50.0
DECODE_TIMEOUT = 12.0
NO_RESPONDERS = "503"  # the server's status for a request without subscribers

PredictionErrors = tuple[tuple[float, ...], ...]  # one row a text, one value a noise draw


class NoWorkerAnswers(RuntimeError):
    """No worker could answer a request; the message says why."""


class BotClient(BusBase):
    def __init__(self, connection: OpenConnection) -> None:
        super().__init__(connection)
        self._tombstones = self._bucket(subjects.CANCELLED)
        self._pools: set[str] = set()  # whose consumers exist
        self._registry = WorkerRegistry(self.limits.lease, self.rejections)
        self.model_progress = ModelProgressRegistry(self.rejections)

    async def dispatch(self, job: Job) -> bool:
        """Send a job to the workers of its pool. Returns False if this attempt is in the queue already."""
        with translate_errors("dispatch"):
            try:
                await self._prepare_pool(job.pool)
                await self.js.publish(subjects.make_work_subject(job), encode(job), stream=subjects.WORK)
            except APIError as error:
                if error.err_code == STREAM_FULL and "per subject" in (error.description or ""):
                    return False
                raise
        return True

    async def declare(self, pools: Sequence[str] = ()) -> None:
        """Make streams and buckets, and forget known consumers: the store may have been lost."""
        self._pools.clear()
        await super().declare(pools)

    async def _prepare_pool(self, pool: str) -> None:
        """Make the pool's consumer. A worker with its own key may pull from it, but not make it."""
        if pool not in self._pools:
            await ensure_consumer(self.js, subjects.WORK, pool_consumer_config(pool, self.limits.lease))
            self._pools.add(pool)

    async def remove_dispatched(self, job: Job, *, every_attempt: bool = False) -> None:
        """Remove a job's dispatched message from the queue: this attempt's, or every attempt's. None there is fine."""
        subject = subjects.all_attempts(job.pool, job.id) if every_attempt else subjects.make_work_subject(job)
        with translate_errors("settle"):
            await self.js.purge_stream(subjects.WORK, subject=subject)

    async def consume_results(self) -> AsyncIterator[BusMessage[Result]]:
        """Yield every result in order until acknowledged. One that is handed back comes again later, out of order."""
        result_type: type[Result] = Result  # pyright: ignore[reportAssignmentType]
        consumer = PullConsumer(
            self.client,
            subjects.RESULTS,
            result_consumer_config(),
            result_type,
            self.dead_letters,
            batch=RESULTS_AT_ONCE,
        )
        try:
            while True:
                if (message := await _next_result(consumer)) is not None:
                    yield message
        finally:
            await consumer.close()

    def watch_frames(self) -> AsyncIterator[Frame]:
        """Yield live previews. A slow reader gets only the newest of each image."""
        return self._iter_latest([subjects.FRAMES_ALL], Frame, lambda frame: (frame.job, frame.image))

    def watch_loadings(self) -> AsyncIterator[JobModelLoading]:
        """Yield model loading progress. A slow reader gets only the newest of each job."""
        return self._iter_latest([subjects.LOADING_ALL], JobModelLoading, lambda loading: loading.job)

    async def list_reported_jobs(self) -> set[str]:
        """Return the jobs that have unread results."""
        with translate_errors("list the unread results"):
            info = await self.js.stream_info(subjects.RESULTS, subjects_filter=f"{subjects.RESULTS}.>")
        return {subjects.parse_result_subject(subject)[1] for subject in info.state.subjects or {}}

    async def read_first_epoch(self) -> int:
        """Return the least valid epoch. Older claims are from before the broker lost its store."""
        with translate_errors("read the first epoch"):
            info = await self.js.stream_info(subjects.kv_stream(subjects.CLAIMS))
        return info.config.first_seq or 0

    async def request_previews(self, job: str) -> None:
        """Ask for a job's previews. Repeat every 5 s while somebody watches: a worker believes it for 10 s."""
        with translate_errors("ask for previews"):
            await self.client.publish(subjects.make_preview_request_subject(job))

    async def send_control(self, control_message: ControlMessage) -> None:
        """Pause, resume, reweigh or pace a job at the worker that runs it now. Sent once and not stored."""
        with translate_errors("steer a job"):
            await self.client.publish(subjects.make_control_subject(control_message.job), encode(control_message))

    async def send_amendments(self, pool: str, amendments: AmendJob) -> None:
        """Send a job's changes to the worker of its pool that runs it.

        Not stored: repeat it until each has its `JobAmended`.
        """
        with translate_errors("change a picture"):
            await self.client.publish(subjects.make_amendment_subject(pool, amendments.job), encode(amendments))

    async def cancel(self, job: str) -> None:
        """Write a tombstone. Workers read it when they claim the job, and listen for it while they run it."""
        with translate_errors("cancel"):
            await self._tombstones.put(job, b"1")

    async def watch_workers(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Start to keep `workers` up to date. `on_change` is called when a worker comes, goes or changes."""
        self._registry.on_change = on_change
        with translate_errors("watch the workers"):
            await self.client.subscribe(subjects.kv_subject(subjects.WORKERS, ">"), cb=self._registry.on_message)
            await self.client.subscribe(subjects.PROGRESS_ALL, cb=self.model_progress.on_message)
            stream = subjects.kv_stream(subjects.WORKERS)
            info = await self.js.stream_info(stream, subjects_filter=subjects.kv_subject(subjects.WORKERS, ">"))
            for subject in info.state.subjects or {}:
                await self._load_worker(stream, subject)

    async def _load_worker(self, stream: str, subject: str) -> None:
        try:
            message = await self.js.get_msg(stream, subject=subject)  # a direct reply would carry reply headers itself
        except NotFoundError:
            return
        if has_reply_header(b64decode(message.hdrs or "")):
            self.rejections.record(f"the entry at {subject}", "it is a reply of the broker, not a worker's message")
            return
        self._registry.handle_message(subject, message.data or b"", cast(dict[str, str], message.headers or {}))

    @property
    def workers(self) -> dict[str, Presence]:
        """Live workers by name; empty before `watch_workers`."""
        return self._registry.get_live_workers()

    def get_startup_progress(self, pool: str | None = None) -> ModelProgress | None:
        """Return what a worker is doing before it is ready, in one pool or in any; None where no worker is starting."""
        return self.model_progress.get_newest(pool, excluded=self.workers)

    def get_workers(self) -> dict[str, Presence]:
        return self.workers

    async def embed(self, texts: Sequence[str], timeout: float = 10.0) -> tuple[tuple[float, ...], ...]:
        """Return one unit vector a text (up to 64). Raises `NoWorkerAnswers`."""
        request = encode(EmbedRequest(texts=tuple(texts)))
        with translate_errors("embed"):
            try:
                reply = decode(await self._request(subjects.EMBED, request, timeout), EmbedReply)
            except (NoRespondersError, TimeoutError, MalformedMessage) as error:
                raise NoWorkerAnswers("No worker that understands text is online.") from error
        if reply.error or len(reply.vectors) != len(texts):
            raise NoWorkerAnswers(reply.error or "A worker answered with the wrong number of vectors.")
        return reply.vectors

    async def describe(self, request: DescribeRequest, timeout: float = DESCRIBE_TIMEOUT) -> PredictionErrors:
        """Return the prediction error of each text at each noise draw. Raises `NoWorkerAnswers`.

        A worker may be busy or about to stop, so up to four attempts are made.
        """
        reply = await self._describe(request, timeout)
        for _ in range(DESCRIBE_TRIES - 1):
            if not (reply.error and reply.may_retry_elsewhere):
                break
            await asyncio.sleep(DESCRIBE_PAUSE)
            reply = await self._describe(request, timeout)
        if reply.error:
            raise NoWorkerAnswers(reply.error)
        if [len(row) for row in reply.errors] != [request.draws] * len(request.texts):
            raise NoWorkerAnswers("A worker answered with the wrong number of errors.")
        return reply.errors

    async def _describe(self, request: DescribeRequest, timeout: float) -> DescribeReply:
        with translate_errors("describe"):
            try:
                return decode(
                    await self._request(subjects.make_describe_subject(request.model), encode(request), timeout),
                    DescribeReply,
                )
            except NoRespondersError as error:
                text = f"No worker that is online has {request.model} in memory: draw something with it first."
                raise NoWorkerAnswers(text) from error
            except (TimeoutError, MalformedMessage) as error:
                raise NoWorkerAnswers("The worker did not answer in time.") from error

    async def decode(self, pool: str, request: DecodeRequest, timeout: float = DECODE_TIMEOUT) -> tuple[bytes, ...]:
        """Return a thumbnail, not validated, for each of the latents, from this pool. Raises `NoWorkerAnswers`."""
        with translate_errors("decode"):
            try:
                reply = decode(
                    await self._request(subjects.make_decode_subject(pool, request.model), encode(request), timeout),
                    DecodeReply,
                )
            except (NoRespondersError, TimeoutError, MalformedMessage) as error:
                raise NoWorkerAnswers("No worker can decode this now.") from error
        if len(reply.thumbnails) == len(request.latents):
            return reply.thumbnails
        raise NoWorkerAnswers(reply.error or "A worker answered with the wrong number of thumbnails.")

    async def _request(self, subject: str, request: bytes, timeout: float) -> bytes:
        """Send a request and return the reply. Uses a reply subject that remote workers may publish to."""
        reply_subject = subjects.make_reply_subject(secrets.token_hex(16))
        subscription = await self.client.subscribe(reply_subject)
        try:
            await self.client.publish(subject, request, reply=reply_subject)
            reply = await subscription.next_msg(timeout)
        finally:
            with suppress(BadSubscriptionError, ConnectionClosedError):
                await subscription.unsubscribe()
        if (reply.headers or {}).get("Status") == NO_RESPONDERS:
            raise NoRespondersError
        return reply.data


async def _next_result(consumer: PullConsumer[Result]) -> BusMessage[Result] | None:
    """Return the next result. Log an outage and wait."""
    try:
        return await consumer.next_message(1.0)
    except BrokerUnreachable as error:
        log.warning("%s", error)
        await asyncio.sleep(0.5)
        return None


EXPIRY_SECONDS = 10.0  # seconds: a report expires; its worker is done or gone
K = TypeVar("K")
V = TypeVar("V")
MAX_ENTRIES = 256  # entries: (worker, pool) pairs, and as many models


class ModelProgressRegistry:
    """Bounded, since any client with the token may send reports."""

    def __init__(self, rejections: RejectionLog) -> None:
        self._rejections = rejections
        self._reports: dict[tuple[str, str], tuple[ModelProgress, float]] = {}
        self._sizes: dict[str, int] = {}

    async def on_message(self, msg: Msg) -> None:
        """Store one worker's report in one of its pools."""
        worker, pool = subjects.parse_progress_subject(msg.subject)
        try:
            msgspec.convert((worker, pool), tuple[Name, Name])
            progress = decode(msg.data, ModelProgress)
        except (MalformedMessage, msgspec.ValidationError) as error:
            self._rejections.record(f"the progress of worker {worker[:64]}", str(error))
            return
        _put_newest(self._reports, (worker, pool), (progress, asyncio.get_running_loop().time()))
        if progress.model and progress.size:
            _put_newest(self._sizes, progress.model, progress.size)

    def get_model_size(self, model: str) -> int:
        """Return a model's size in bytes, as last reported; 0: unknown."""
        return self._sizes.get(model, 0)

    def get_newest(self, pool: str | None, *, excluded: Collection[str] = ()) -> ModelProgress | None:
        """Return the newest report in one pool or in all, without the workers `excluded`."""
        reports = [
            report
            for (worker, report_pool), report in self._current_reports()
            if worker not in excluded and pool in (None, report_pool)
        ]
        return reports[-1] if reports else None

    def get_progress(self, worker: str) -> ModelProgress | None:
        """Return one worker's current or just finished progress."""
        return next((report for (name, _), report in self._current_reports() if name == worker), None)

    def _current_reports(self) -> list[tuple[tuple[str, str], ModelProgress]]:
        earliest = asyncio.get_running_loop().time() - EXPIRY_SECONDS
        return [(key, report) for key, (report, reported_at) in self._reports.items() if reported_at >= earliest]


def _put_newest(entries: dict[K, V], key: K, value: V) -> None:
    """Insert as the newest; drop the oldest where there are too many."""
    entries.pop(key, None)
    entries[key] = value
    if len(entries) > MAX_ENTRIES:
        del entries[next(iter(entries))]


MAX_EXAMINED_BYTES = 64 * 1024  # bytes: a larger malformed presence is not examined


@dataclass(frozen=True)
class Announcement:
    """A worker's latest presence, and until when (loop time) it counts in each pool."""

    presence: Presence
    valid_until: Mapping[str, float]

    def limit_to_live_pools(self, now: float) -> Presence | None:
        """Return the presence, limited to the pools announced within a lease; None where there are none."""
        pools = tuple(pool for pool in self.presence.pools if self.valid_until.get(pool, 0.0) >= now)
        if pools == self.presence.pools:
            return self.presence
        return replace(self.presence, pools=pools) if pools else None


class WorkerRegistry:
    """Live workers by name. It calls `on_change` when a worker comes, goes, or changes its presence."""

    def __init__(self, lease: float, rejections: RejectionLog, on_change: Callable[[], None] = lambda: None) -> None:
        self._lease = lease
        self._rejections = rejections
        self._announcements: dict[str, Announcement] = {}
        self.on_change = on_change

    def get_live_workers(self) -> dict[str, Presence]:
        """Return every live worker by name; forget the expired."""
        now = asyncio.get_running_loop().time()
        live = {name: announcement.limit_to_live_pools(now) for name, announcement in self._announcements.items()}
        for name in [name for name, presence in live.items() if presence is None]:
            log.warning("worker %s has not been heard of for %.0f s", name, self._lease)
            del self._announcements[name]
        return {name: presence for name, presence in live.items() if presence is not None}

    async def on_message(self, msg: Msg) -> None:
        self.handle_message(msg.subject, msg.data, msg.headers or {})

    def handle_message(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        """Handle a put or a delete in the bucket."""
        if REPLY_HEADER in headers:
            self._rejections.record(f"a message on {subject}", "it is a reply of the broker, not a worker's message")
        elif payload:
            self._handle_announcement(subject, payload)
        elif KV_OP in headers:
            self._remove(*subjects.parse_presence_subject(subject))

    def _remove(self, name: str, pool: str) -> None:
        announcement = self._announcements.get(name)
        if announcement is None or pool not in announcement.valid_until:
            return
        remaining = {
            other_pool: expiry for other_pool, expiry in announcement.valid_until.items() if other_pool != pool
        }
        if remaining:
            self._announcements[name] = Announcement(announcement.presence, remaining)
        else:
            del self._announcements[name]
            log.info("worker %s has left", name)
        self.on_change()

    def _handle_announcement(self, subject: str, payload: bytes) -> None:
        """Handle one announcement: worker and pool of its subject must match the payload."""
        worker, pool = subjects.parse_presence_subject(subject)
        try:
            presence = decode(payload, Presence)
        except MalformedMessage as error:
            self._rejections.record(
                f"worker {worker or subject} announces {_describe_invalid_field(payload, str(error))}", str(error)
            )
            return
        if worker != presence.worker or pool not in presence.pools:
            self._rejections.record(
                f"on {subject} somebody announces the worker {presence.worker} in the pools {','.join(presence.pools)}",
                "it does not count there",
            )
            return
        self._store_presence(presence, pool)

    def _store_presence(self, presence: Presence, pool: str) -> None:
        now = asyncio.get_running_loop().time()
        old = self._announcements.get(presence.worker)
        announced: Mapping[str, float] = old.valid_until if old else {}
        valid_until = {pool: expiry for pool, expiry in announced.items() if pool in presence.pools}
        announcement = Announcement(presence, {**valid_until, pool: now + self._lease})
        self._announcements[presence.worker] = announcement
        if old is None or old.limit_to_live_pools(now) != announcement.limit_to_live_pools(now):
            self.on_change()


def _describe_invalid_field(payload: bytes, error: str) -> str:
    """Return the invalid field and its value, as `rows 50000`; `itself` where they are unknown."""
    match = re.search(r"at `\$\.(\w{1,32})`", error)
    if match is None or len(payload) > MAX_EXAMINED_BYTES:
        return "itself"
    try:
        fields: Any = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError, TypeError):
        return "itself"
    value = cast(dict[str, object], fields).get(match[1]) if isinstance(fields, dict) else None
    return f"{match[1]} {value!r:.40}" if isinstance(value, int | float | str) else match[1]
