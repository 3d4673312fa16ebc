"""What the bot does on the bus: dispatch work, read results and previews, cancel, know the workers, ask about texts.

Knows subjects and delivery; nothing of SQL or Discord. An outage of the broker raises `Unreachable`, except in the
iterators, which wait it out.
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

FULL = 10077  # JetStream's code for "no room", also for a second message on a subject that holds one
RESULTS_AT_ONCE = 64
DESCRIBERS_ASKED, DESCRIBERS_PAUSE = 4, 0.5  # workers, and seconds between two
DESCRIBING_SECONDS, DECODING_SECONDS = 50.0, 12.0  # longer than a worker works on one request
NOBODY = "503"  # the status by which the server says that nobody hears a request

Errors = tuple[tuple[float, ...], ...]  # of each text at each draw


class NobodyAnswers(RuntimeError):
    """No worker could answer a request; the text says why."""


class BotSide(Station):
    """The bot's half of the bus."""

    def __init__(self, client: Client, kept: Kept, again: list[Act], scoped: bool = False) -> None:
        super().__init__(client, kept, again, scoped)
        self._tombstones = self._bucket(subjects.CANCELLED)
        self._pools: set[str] = set()  # whose consumers are there
        self._presences = Presences(kept.lease, self.refused)
        self.progress = ProgressBoard(self.refused)

    async def dispatch(self, job: Job) -> bool:
        """Hands a job to the workers of its pool, so that the oldest of them can read it.

        False: this attempt lies there already, which is fine.
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
        """As every station; and whatever we knew of the store may be gone."""
        self._pools.clear()
        await super().declare(pools)

    async def _offer(self, pool: str) -> None:
        """A worker with a key of its own may pull from its pools' consumers, and not make them."""
        if pool not in self._pools:
            await ensure_consumer(self.js, subjects.WORK, pool_consumer(pool, self.kept.lease))
            self._pools.add(pool)

    async def settle(self, job: Job, *, every_attempt: bool = False) -> None:
        """Takes a job's dispatched message (of this attempt, or of all) out of the queue; none there is fine."""
        subject = subjects.work_of(job.pool, job.id) if every_attempt else subjects.work(job)
        with reaching("settle"):
            await self.js.purge_stream(subjects.WORK, subject=subject)

    async def results(self) -> AsyncIterator[Delivered[Result]]:
        """Every result, in order, until it is acknowledged; one handed back comes again later, out of order."""
        kind: type[Result] = Result  # pyright: ignore[reportAssignmentType]
        pull = Pull(self.client, self.js, subjects.RESULTS, settle_consumer(), kind, self.dead, batch=RESULTS_AT_ONCE)
        try:
            while True:
                if (delivered := await _patient(pull)) is not None:
                    yield delivered
        finally:
            await pull.close()

    def frames(self) -> AsyncIterator[Frame]:
        """Live previews: the newest of each image, whatever the reader's speed."""
        return self._newest(subjects.FRAMES_ALL, Frame, lambda one: (one.job, one.image))

    def loadings(self) -> AsyncIterator[Loading]:
        """How far models are in memory: the newest of each job, whatever the reader's speed."""
        return self._newest(subjects.LOADING_ALL, Loading, lambda one: one.job)

    async def reported(self) -> set[str]:
        """The jobs about which reports wait to be taken in."""
        with reaching("look at the reports"):
            told = await self.js.stream_info(subjects.RESULTS, subjects_filter=f"{subjects.RESULTS}.>")
        return {subjects.speaker(subject)[1] for subject in told.state.subjects or {}}

    async def first_epoch(self) -> int:
        """Claims with an older epoch were made before the broker lost its store."""
        with reaching("look at the claims"):
            told = await self.js.stream_info(subjects.kv_stream(subjects.CLAIMS))
        return told.config.first_seq or 0

    async def want(self, job: str) -> None:
        """Somebody watches this job: repeat every 5 s, since a worker believes it for 10 s."""
        with reaching("ask for previews"):
            await self.client.publish(subjects.want(job))

    async def steer(self, steer: Steer) -> None:
        """Pauses a job, lets it go on or weighs it, for the worker that runs it now: said once, and kept nowhere."""
        with reaching("steer a job"):
            await self.client.publish(subjects.steer(steer.job), encode(steer))

    async def cancel(self, job: str) -> None:
        """The tombstone that every worker reads at its claim and listens for while it runs."""
        with reaching("cancel"):
            await self._tombstones.put(job, b"1")

    async def watch_workers(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Begins to keep `workers` up to date; `on_change` is called when one comes, goes or changes."""
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
            message = await self.js.get_msg(stream, subject=subject)  # direct, it would come with an answer's headers
        except NotFoundError:
            return
        if answered(b64decode(message.hdrs or "")):
            self.refused.note(f"what lies at {subject}", "it is an answer of the broker, which is no worker's word")
            return
        self._presences.hear(subject, message.data or b"", message.headers or {})

    @property
    def workers(self) -> dict[str, Presence]:
        """The live workers, by name; empty before `watch_workers`."""
        return self._presences.alive()

    def starting(self, pool: str | None = None) -> ModelProgress | None:
        """What a worker does that is not there yet, in one pool or in any; None where none is on its way."""
        return self.progress.newest(pool, but=self.workers)

    def presences(self) -> dict[str, Presence]:
        return self.workers

    async def embed(self, texts: Sequence[str], timeout: float = 10.0) -> tuple[tuple[float, ...], ...]:
        """Unit vectors, one a text (up to 64). Raises `NobodyAnswers` when no worker can."""
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
        """The error of each text at each draw. Raises `NobodyAnswers` when no worker can say.

        Whoever is asked may be busy or about to end, so a few are.
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
                raise NobodyAnswers("The worker that was asked did not answer.") from error

    async def decode(self, pool: str, request: DecodeRequest, timeout: float = DECODING_SECONDS) -> tuple[bytes, ...]:
        """A thumbnail for each of the latents, by a worker of this pool, not yet opened. Raises `NobodyAnswers`."""
        with reaching("decode"):
            try:
                reply = decode(
                    await self._asked(subjects.decode(pool, request.model), encode(request), timeout), DecodeReply
                )
            except (NoRespondersError, TimeoutError, Malformed) as error:
                raise NobodyAnswers("No worker decodes this just now.") from error
        if len(reply.thumbnails) == len(request.latents):
            return reply.thumbnails
        raise NobodyAnswers(reply.error or "A worker answered with the wrong number of thumbnails.")

    async def _asked(self, subject: str, request: bytes, timeout: float) -> bytes:
        """What one of the workers answers, where those elsewhere can send it, too."""
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
    """The next result; an outage is logged and waited out."""
    try:
        return await pull.next(1.0)
    except Unreachable as error:
        log.warning("%s", error)
        await asyncio.sleep(0.5)
        return None
