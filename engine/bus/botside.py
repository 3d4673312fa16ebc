"""The bot's client of the bus: dispatches jobs, reads results and previews, cancels, tracks workers, sends requests.

Uses no SQL and no Discord. While the broker is away, calls raise `Unreachable`; iterators wait instead.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from nats.aio.client import Client
from nats.errors import BadSubscriptionError, ConnectionClosedError, NoRespondersError
from nats.js.errors import APIError, NotFoundError

from engine.bus import subjects
from engine.bus.deliveries import Delivered, Pull
from engine.bus.hearing import answered
from engine.bus.link import Unreachable, reaching
from engine.bus.presences import Presences
from engine.bus.progress import ProgressBoard
from engine.bus.station import Act, Station
from engine.bus.streams import Kept, ensure_consumer, pool_consumer, settle_consumer
from engine.job import (
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    Frame,
    Job,
    Loading,
    Malformed,
    ModelProgress,
    Presence,
    Result,
    Steer,
    decode,
    encode,
    readable,
)

log = logging.getLogger(__name__)

FULL = 10077  # JetStream's code for a full stream, also for a second message on a full subject
RESULTS_AT_ONCE = 64
DESCRIBERS_ASKED, DESCRIBERS_PAUSE = 4, 0.5  # attempts, and seconds between them
DESCRIBING_SECONDS, DECODING_SECONDS = 50.0, 12.0  # longer than a worker spends on one request
NOBODY = "503"  # the server's status for a request without subscribers

Errors = tuple[tuple[float, ...], ...]  # one row a text, one value a noise draw


class NobodyAnswers(RuntimeError):
    """No worker could answer a request; the message says why."""


class BotSide(Station):
    def __init__(self, client: Client, kept: Kept, again: list[Act], scoped: bool = False) -> None:
        super().__init__(client, kept, again, scoped)
        self._tombstones = self._bucket(subjects.CANCELLED)
        self._pools: set[str] = set()  # whose consumers exist
        self._presences = Presences(kept.lease, self.refused)
        self.progress = ProgressBoard(self.refused)

    async def dispatch(self, job: Job) -> bool:
        """Send a job to the workers of its pool, in a form that the oldest of them can read.

        Returns False when this attempt is already in the queue, which is fine.
        """
        oldest = min((one.v for one in self.workers.values() if job.pool in one.pools), default=job.task.v)
        payload = encode(readable(job, oldest))
        with reaching("dispatch"):
            try:
                await self._offer(job.pool)
                await self.js.publish(subjects.work(job), payload, stream=subjects.WORK)
            except APIError as error:
                if error.err_code == FULL and "per subject" in (error.description or ""):
                    return False
                raise
        return True

    async def declare(self, pools: Sequence[str] = ()) -> None:
        """Make streams and buckets, and forget known consumers: the store may have been lost."""
        self._pools.clear()
        await super().declare(pools)

    async def _offer(self, pool: str) -> None:
        """Make the pool's consumer. A worker with its own key may pull from it, but not make it."""
        if pool not in self._pools:
            await ensure_consumer(self.js, subjects.WORK, pool_consumer(pool, self.kept.lease))
            self._pools.add(pool)

    async def settle(self, job: Job, *, every_attempt: bool = False) -> None:
        """Remove a job's dispatched message from the queue: this attempt's, or every attempt's. None there is fine."""
        subject = subjects.work_of(job.pool, job.id) if every_attempt else subjects.work(job)
        with reaching("settle"):
            await self.js.purge_stream(subjects.WORK, subject=subject)

    async def results(self) -> AsyncIterator[Delivered[Result]]:
        """Yield every result in order until acknowledged. One that is handed back comes again later, out of order."""
        kind: type[Result] = Result  # pyright: ignore[reportAssignmentType]
        pull = Pull(self.client, self.js, subjects.RESULTS, settle_consumer(), kind, self.dead, batch=RESULTS_AT_ONCE)
        try:
            while True:
                if (delivered := await _patient(pull)) is not None:
                    yield delivered
        finally:
            await pull.close()

    def frames(self) -> AsyncIterator[Frame]:
        """Yield live previews. A slow reader gets only the newest of each image."""
        return self._newest(subjects.FRAMES_ALL, Frame, lambda one: (one.job, one.image))

    def loadings(self) -> AsyncIterator[Loading]:
        """Yield model loading progress. A slow reader gets only the newest of each job."""
        return self._newest(subjects.LOADING_ALL, Loading, lambda one: one.job)

    async def reported(self) -> set[str]:
        """Return the jobs that have unread results."""
        with reaching("list the unread results"):
            told = await self.js.stream_info(subjects.RESULTS, subjects_filter=f"{subjects.RESULTS}.>")
        return {subjects.speaker(subject)[1] for subject in told.state.subjects or {}}

    async def first_epoch(self) -> int:
        """Return the least valid epoch. Older claims are from before the broker lost its store."""
        with reaching("read the first epoch"):
            told = await self.js.stream_info(subjects.kv_stream(subjects.CLAIMS))
        return told.config.first_seq or 0

    async def want(self, job: str) -> None:
        """Ask for a job's previews. Repeat every 5 s while somebody watches: a worker believes it for 10 s."""
        with reaching("ask for previews"):
            await self.client.publish(subjects.want(job))

    async def steer(self, steer: Steer) -> None:
        """Pause, resume or reweigh a job at the worker that runs it now. Sent once and not stored."""
        with reaching("steer a job"):
            await self.client.publish(subjects.steer(steer.job), encode(steer))

    async def cancel(self, job: str) -> None:
        """Write a tombstone. Workers read it when they claim the job, and listen for it while they run it."""
        with reaching("cancel"):
            await self._tombstones.put(job, b"1")

    async def watch_workers(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Start to keep `workers` up to date. `on_change` is called when a worker comes, goes or changes."""
        self._presences.on_change = on_change
        with reaching("watch the workers"):
            await self.client.subscribe(subjects.kv_subject(subjects.WORKERS, ">"), cb=self._presences.on_message)
            await self.client.subscribe(subjects.PROGRESS_ALL, cb=self.progress.on_message)
            stream = subjects.kv_stream(subjects.WORKERS)
            info = await self.js.stream_info(stream, subjects_filter=subjects.kv_subject(subjects.WORKERS, ">"))
            for subject in info.state.subjects or {}:
                await self._note_worker(stream, subject)

    async def _note_worker(self, stream: str, subject: str) -> None:
        try:
            message = await self.js.get_msg(stream, subject=subject)  # a direct reply would carry reply headers itself
        except NotFoundError:
            return
        if answered(b64decode(message.hdrs or "")):
            self.refused.note(f"the entry at {subject}", "it is a reply of the broker, not a worker's message")
            return
        self._presences.hear(subject, message.data or b"", message.headers or {})

    @property
    def workers(self) -> dict[str, Presence]:
        """Live workers by name; empty before `watch_workers`."""
        return self._presences.alive()

    def starting(self, pool: str | None = None) -> ModelProgress | None:
        """Return what a worker is doing before it is ready, in one pool or in any; None where no worker is starting."""
        return self.progress.newest(pool, but=self.workers)

    def presences(self) -> dict[str, Presence]:
        return self.workers

    async def embed(self, texts: Sequence[str], timeout: float = 10.0) -> tuple[tuple[float, ...], ...]:
        """Return one unit vector a text (up to 64). Raises `NobodyAnswers`."""
        request = encode(EmbedRequest(texts=tuple(texts)))
        with reaching("embed"):
            try:
                reply = decode(await self._asked(subjects.EMBED, request, timeout), EmbedReply)
            except (NoRespondersError, TimeoutError, Malformed) as error:
                raise NobodyAnswers("No worker that understands text is online.") from error
        if reply.error or len(reply.vectors) != len(texts):
            raise NobodyAnswers(reply.error or "A worker answered with the wrong number of vectors.")
        return reply.vectors

    async def describe(self, request: DescribeRequest, timeout: float = DESCRIBING_SECONDS) -> Errors:
        """Return the prediction error of each text at each noise draw. Raises `NobodyAnswers`.

        A worker may be busy or about to stop, so up to four attempts are made.
        """
        reply = await self._describe(request, timeout)
        for _ in range(DESCRIBERS_ASKED - 1):
            if not (reply.error and reply.elsewhere):
                break
            await asyncio.sleep(DESCRIBERS_PAUSE)
            reply = await self._describe(request, timeout)
        if reply.error:
            raise NobodyAnswers(reply.error)
        if [len(one) for one in reply.errors] != [request.draws] * len(request.texts):
            raise NobodyAnswers("A worker answered with the wrong number of errors.")
        return reply.errors

    async def _describe(self, request: DescribeRequest, timeout: float) -> DescribeReply:
        with reaching("describe"):
            try:
                return decode(
                    await self._asked(subjects.describe(request.model), encode(request), timeout), DescribeReply
                )
            except NoRespondersError as error:
                said = f"No worker that is online has {request.model} in memory: draw something with it first."
                raise NobodyAnswers(said) from error
            except (TimeoutError, Malformed) as error:
                raise NobodyAnswers("The worker did not answer in time.") from error

    async def decode(self, pool: str, request: DecodeRequest, timeout: float = DECODING_SECONDS) -> tuple[bytes, ...]:
        """Return a thumbnail, not validated, for each of the latents, from this pool. Raises `NobodyAnswers`."""
        with reaching("decode"):
            try:
                reply = decode(
                    await self._asked(subjects.decode(pool, request.model), encode(request), timeout), DecodeReply
                )
            except (NoRespondersError, TimeoutError, Malformed) as error:
                raise NobodyAnswers("No worker can decode this now.") from error
        if len(reply.thumbnails) == len(request.latents):
            return reply.thumbnails
        raise NobodyAnswers(reply.error or "A worker answered with the wrong number of thumbnails.")

    async def _asked(self, subject: str, request: bytes, timeout: float) -> bytes:
        """Send a request and return the reply. Uses a reply subject that remote workers may publish to."""
        answers = subjects.vectors(secrets.token_hex(16))
        subscription = await self.client.subscribe(answers)
        try:
            await self.client.publish(subject, request, reply=answers)
            answer = await subscription.next_msg(timeout)
        finally:
            with suppress(BadSubscriptionError, ConnectionClosedError):
                await subscription.unsubscribe()
        if (answer.headers or {}).get("Status") == NOBODY:
            raise NoRespondersError
        return answer.data


async def _patient(pull: Pull[Result]) -> Delivered[Result] | None:
    """Return the next result. Log an outage and wait."""
    try:
        return await pull.next(1.0)
    except Unreachable as error:
        log.warning("%s", error)
        await asyncio.sleep(0.5)
        return None
