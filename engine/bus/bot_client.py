"""The bot's client of the bus: dispatches jobs, reads results and previews, cancels, tracks workers, sends requests.

Uses no SQL and no Discord. While the broker is away, calls raise `BrokerUnreachable`; iterators wait instead.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import cast

from nats.errors import BadSubscriptionError, ConnectionClosedError, NoRespondersError
from nats.js.errors import APIError, NotFoundError

from engine.bus import subjects
from engine.bus.connection import BrokerUnreachable, translate_errors
from engine.bus.connection_base import BusBase, OpenConnection
from engine.bus.deliveries import BusMessage, PullConsumer
from engine.bus.hardened_client import has_reply_header
from engine.bus.model_progress import ModelProgressRegistry
from engine.bus.streams import ensure_consumer, pool_consumer_config, result_consumer_config
from engine.bus.worker_registry import WorkerRegistry
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
            self.js,
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
