"""Ingests pictures and ladders: fetches them from the broker, checks them, stores the files and records them in SQL.

It checks the bytes before it trusts a worker's report: workers are other people's machines, so a sandboxed process
decodes their pictures first. Knows PNGs and ladders; decides no job states.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import msgspec

from bot.domain.job_states import is_end
from bot.jobs.active_jobs import ActiveJobs
from bot.pictures.image_codec import png_size
from bot.pictures.picture_store import ContentMissing, PictureStore
from bot.pictures.uploads.upload_decoder import UploadDecoder
from bot.store import JobRecord, JobStats, Store, StoredPicture, Transition
from bot.store.deletion.deletion_steps import is_unused
from bot.store.jobs import queries
from engine.bus import BlobMissing, Bus
from engine.contract import (
    MAX_COUNT,
    JobFinished,
    Ladder,
    PictureReady,
    Recipe,
    Task,
    UpscaleMethod,
    UpscaleTask,
    decode,
)

MAX_UPSCALE = 8  # largest factor of a super-resolver, each side (`engine.contract.ModelProfile.upscale_factor`)
MAX_BYTES = {"image": 64 * 1024 * 1024, "ladder": 24 * 1024 * 1024}  # bytes


class IncompleteJob(Exception):
    """A worker reported a job as done before all of its pictures arrived."""


class WrongPicture(ValueError):
    """A picture does not match its report, or its job."""


@dataclass(eq=False)
class ResultIngest:
    """Stores jobs' incoming pictures."""

    store: Store
    bus: Bus
    active_jobs: ActiveJobs
    pictures: PictureStore
    decoder: UploadDecoder
    clock: Callable[[], float] = time.time

    async def ingest_pictures(
        self, pictures: Sequence[PictureReady], finished: JobFinished | None = None
    ) -> tuple[bool, Transition | None]:
        """Store pictures of one job and epoch, and finish it if `finished` is given and none is missing.

        False: the job no longer accepts them. Raises `WrongPicture`, `BlobMissing`, `MalformedMessage` or
        `UnreadableImage`, or ValueError for a false choice or change, and then stores none.
        """
        first_result = (*pictures, finished)[0]
        assert first_result is not None
        if pictures and not await self._is_accepted(pictures):
            return False, None
        contents = await self._fetch_contents(pictures)
        new_pictures = [_to_stored(picture, contents[picture.sha256]) for picture in pictures]
        stats = (
            JobStats(
                finished.cost, finished.seconds, finished.ms_per_step, finished.chosen_candidates, finished.amendments
            )
            if finished
            else None
        )
        methods: list[UpscaleMethod] = [value.method for value in pictures if value.method]
        async with AsyncExitStack() as locks:
            for sha256 in sorted(contents):  # always sorted, or two tasks would deadlock
                await locks.enter_async_context(self.pictures.lock(sha256))
            if contents:
                await self.pictures.put_all(contents)
            accepted, transition = await self.store.record_pictures(
                first_result.job, first_result.epoch, new_pictures, stats, self.clock(), *methods[:1]
            )
            for sha256 in () if accepted else contents:
                if await self.store.query(is_unused, sha256):  # the job ended or was deleted meanwhile
                    await self.pictures.delete(sha256)
        return accepted, transition

    async def _is_accepted(self, pictures: Sequence[PictureReady]) -> bool:
        """Return whether the job still accepts them. Raises `WrongPicture` for one that it did not request."""
        active_job = self.active_jobs.by_id.get(pictures[0].job)  # SQL also knows jobs that this process lacks
        record = active_job.record if active_job else await self.store.get_job(pictures[0].job)
        if record is None or is_end(record.state) or pictures[0].epoch < record.epoch or record.deleted is not None:
            return False
        for picture in pictures:
            _check_expected(picture, record)
        return True

    async def _fetch_contents(self, pictures: Sequence[PictureReady]) -> dict[str, bytes]:
        """Fetch the bytes, by SHA-256, and check them. The bus has verified the hashes."""
        if not pictures:
            return {}
        downloads = (self._fetch_content(picture) for picture in pictures)
        contents: list[bytes] = []
        for content in await asyncio.gather(*downloads, return_exceptions=True):
            if isinstance(content, BaseException):
                raise content
            contents.append(content)
        await self.decoder.check_pictures(await asyncio.to_thread(_check_pictures, pictures, contents))
        return {value.sha256: content for value, content in zip(pictures, contents, strict=True)}

    async def _fetch_content(self, picture: PictureReady) -> bytes:
        """Fetch the bytes of one. Raises `BlobMissing`.

        A blob is dropped once its picture is stored: by an earlier delivery, or for another job with the same picture.
        """
        try:
            return await self.bus.get_blob(picture.sha256, min(MAX_BYTES[picture.kind], picture.bytes))
        except BlobMissing as missing:
            try:
                return await self.pictures.get(picture.sha256)
            except ContentMissing:
                raise missing from None

    async def find_unfinished(self, finished: JobFinished) -> tuple[JobRecord, list[str]] | None:
        """Return the job that a report could not finish, with what it lacks; None if the report came too late."""
        record = await self.store.get_job(finished.job)
        if record is None or is_end(record.state) or finished.epoch < record.epoch:
            return None
        return record, await self._list_missing(record, finished)

    async def _list_missing(self, record: JobRecord, finished: JobFinished) -> list[str]:
        """Return the results that have not arrived, as `image 0` or `ladder 0`; where changes are lost, `change 1`."""
        if lost_changes := record.find_lost_changes(finished.amendments):
            return lost_changes
        if isinstance(record.task, Recipe):
            record = replace(record, task=msgspec.structs.replace(record.task, amendments=finished.amendments))
        return record.find_missing(await self.store.query(queries.list_pictures, [record.id]))


def _to_stored(picture: PictureReady, content: bytes) -> StoredPicture:
    size_fields = (len(content), picture.width, picture.height)
    return StoredPicture(
        picture.job, picture.image, picture.kind, picture.sha256, *size_fields, verdict=picture.verdict
    )


def _check_pictures(pictures: Sequence[PictureReady], contents: Sequence[bytes]) -> list[bytes]:
    """Return every picture in them, once each of them is what was announced."""
    pairs = zip(pictures, contents, strict=True)
    return [image for picture, content in pairs for image in check_picture(picture, content)]


def _check_expected(picture: PictureReady, record: JobRecord) -> None:
    is_ladder_of_upscale = picture.kind == "ladder" and isinstance(record.task, UpscaleTask)
    if picture.image >= _most_images(record.task) or is_ladder_of_upscale:
        raise WrongPicture(f"the job did not ask for {picture.kind} {picture.image}")
    if picture.kind == "image" and isinstance(record.task, Recipe):
        requested = (record.task.width, record.task.height)
        factor = picture.width // record.task.width
        if not 1 <= factor <= MAX_UPSCALE or (picture.width, picture.height) != (
            factor * requested[0],
            factor * requested[1],
        ):
            raise WrongPicture(
                f"the picture is {picture.width} × {picture.height}, no multiple of {requested[0]} × {requested[1]}"
            )


def _most_images(task: Task) -> int:
    """Return how many images the job may come to make: a split, which this bot may not know yet, adds some."""
    if not isinstance(task, Recipe):
        return 1
    is_fixed = task.interpolation is not None or task.candidate_count or task.chosen_candidates
    return task.count if is_fixed else MAX_COUNT


def check_picture(picture: PictureReady, content: bytes) -> list[bytes]:
    """Check that the bytes are the announced PNG or ladder. Raises `WrongPicture` or `MalformedMessage`.

    Return the pictures in it, which the caller has decoded entirely by a sandboxed process: a valid header proves
    little. CPU-heavy: async callers use a thread.
    """
    if len(content) != picture.bytes:
        raise WrongPicture(f"{len(content)} bytes arrived, not {picture.bytes}")
    if picture.kind == "image":
        if png_size(content) != (picture.width, picture.height):
            raise WrongPicture("the picture is not the PNG that was announced")
        return [content]
    ladder = decode(content, Ladder)
    if (ladder.job, ladder.image) != (picture.job, picture.image):
        raise WrongPicture("the ladder belongs to another picture")
    if not ladder.keyframes:
        raise WrongPicture("the ladder has no keyframes")
    return [keyframe.thumbnail for keyframe in ladder.keyframes]
