"""Loads what a job begins with: uploaded init images, masks, finished pictures, ladders.

It decodes files and stores them by their SHA-256. The transaction that writes the job records them like its pictures,
so they are deleted with it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import get_args

from bot.domain.concurrency import PerMemberLimit
from bot.domain.dto import InputKind, Member, StoredInput
from bot.domain.errors import UserError
from bot.domain.texts import INIT_IMAGE_GONE
from bot.images.gallery import Gallery
from bot.images.moderation_status import hold_reason, is_held
from bot.images.picture_store import PictureStore
from bot.images.uploads.image_links import FetchFile, FileUnavailable
from bot.images.uploads.memory_limiter import MemoryLimiter
from bot.images.uploads.upload_decoder import DecodedImage, UploadDecoder
from bot.services.init_images.loaded import LoadedInitImages, check_image_counts, combine_init_images
from bot.services.init_images.request import ImageInput, InitImages, JobImageRef, RemoteFile
from bot.services.job_permissions import refusal_reason
from bot.services.job_views.job_views import JobViews
from bot.store import DatabaseUnavailable, JobRecord, Store
from bot.store.deletion import deletion_steps
from bot.store.jobs import queries
from bot.store.moderation import reviews
from engine.contract import Recipe, required_blobs

log = logging.getLogger(__name__)

USES_PARENT_PICTURE = (
    "edit",
    "zoom",
    "pan",
    "branch",
)  # these actions begin with the parent's picture; others with the parent's own inputs
HELD_STATUS = 403


class InitImageLoader:
    """Fetches, decodes and stores init images."""

    def __init__(
        self,
        store: Store,
        picture_store: PictureStore,
        gallery: Gallery,
        job_views: JobViews,
        upload_decoder: UploadDecoder,
        fetch: FetchFile,
    ) -> None:
        self._store = store
        self._picture_store = picture_store
        self._gallery = gallery
        self._job_views = job_views
        self._upload_decoder = upload_decoder
        self._fetch = fetch
        self._member_limit = PerMemberLimit()
        self._memory_limiter = MemoryLimiter()

    def reserve_turn(self, member: Member) -> AbstractAsyncContextManager[None]:
        """Serialise a member's slow work. Raises `UserError` if too many of their requests wait."""
        return self._member_limit.reserve(member.id)

    @asynccontextmanager
    async def open_init_images(self, member: Member, init_images: InitImages) -> AsyncGenerator[LoadedInitImages]:
        """Fetch and decode a member's init images, in their turn; memory is reserved while the body runs.

        Raises `UserError`, also for a finished picture that is held or that the member may not use.
        """
        check_image_counts(
            len(init_images.pictures),
            len(init_images.controls),
            len(init_images.references),
            has_mask=init_images.mask is not None,
        )
        async with self.reserve_turn(member), self._memory_limiter.reserve(init_images.memory_bytes):
            pictures, controls, references = [
                [await self._load_image(member, image, label) for image in images]
                for images, label in (
                    (init_images.pictures, "picture"),
                    (init_images.controls, "control picture"),
                    (init_images.references, "reference picture"),
                )
            ]
            mask = None
            if init_images.mask is not None:
                content = await self._fetch_bytes(init_images.mask)
                shape = (pictures[0].width, pictures[0].height)
                is_transparency = init_images.is_mask_transparency
                mask = await self._upload_decoder.decode_mask(content, shape=shape, is_transparency=is_transparency)
            yield combine_init_images(pictures, mask, init_images.weights, controls, references)

    async def load_upload(self, member: Member, upload: bytes | RemoteFile) -> DecodedImage:
        """Fetch and decode an image that is no init image, in its member's turn. Raises `UserError`."""
        async with self.reserve_turn(member), self._memory_limiter.reserve(InitImages((upload,)).memory_bytes):
            return await self._upload_decoder.decode_picture(await self._fetch_bytes(upload))

    async def read_recipe_text(self, member: Member, upload: bytes) -> str:
        """Return the recipe that an uploaded picture carries, in its member's turn. Raises `UserError`."""
        async with self.reserve_turn(member), self._memory_limiter.reserve(InitImages((upload,)).memory_bytes):
            return await self._upload_decoder.read_recipe_text(upload)

    async def _load_image(self, member: Member, image: ImageInput, label: str) -> DecodedImage | StoredInput:
        if not isinstance(image, JobImageRef):
            return await self._upload_decoder.decode_picture(await self._fetch_bytes(image), label=label)
        if reason_text := refusal_reason("vary", member, await self._job_views.load_record(image.job)):
            raise UserError(reason_text, 403)
        stored_file = await self._gallery.find_visible(image.job, image.index)
        return StoredInput("input", stored_file.sha256, stored_file.bytes, stored_file.width, stored_file.height)

    async def _fetch_bytes(self, upload: bytes | RemoteFile) -> bytes:
        if isinstance(upload, bytes):
            return upload
        try:
            return await self._fetch(upload.url, upload.max_bytes)
        except FileUnavailable as error:
            raise UserError(upload.missing_text, 404) from error

    async def load_ladder(self, job: str, index: int) -> StoredInput:
        """Return the ladder of a finished image that may be shown. Raises `UserError` if it has none."""
        ladder = await self._gallery.find_ladder(job, index)
        return StoredInput("branch", ladder.sha256, ladder.bytes, ladder.width, ladder.height)

    async def inputs_of(self, record: JobRecord) -> tuple[StoredInput, ...]:
        """Return the inputs of a job, for another job with the same inputs.

        Raises `UserError` if an input was deleted with its own job (404), or is held for review (403).
        """
        stored_files = await self._store.query(queries.list_pictures, [record.id])
        inputs = tuple(
            StoredInput(kind, file.sha256, file.bytes, file.width, file.height)
            for kind in get_args(InputKind)
            for file in stored_files
            if file.kind == kind
        )
        if not {file.sha256 for file in inputs}.issuperset(required_blobs(record.task)):
            raise UserError(INIT_IMAGE_GONE, 404)
        if inputs:
            await self._check_not_held(record)
        return inputs

    async def followed_pictures_of(self, record: JobRecord, recipe: Recipe) -> tuple[StoredInput, ...]:
        """Return a job's control and reference pictures that `recipe` still follows, for a job derived from it.

        Raises `UserError` as `inputs_of` does.
        """
        kinds: dict[str, InputKind] = {each.picture: "reference" for each in recipe.references}
        kinds |= {each.picture: "control" for each in recipe.controls}
        inputs = {file.sha256: file for file in await self.inputs_of(record)} if kinds else {}
        return tuple(replace(inputs[sha256], kind=kind) for sha256, kind in kinds.items())

    async def _check_not_held(self, record: JobRecord) -> None:
        """Raise `UserError` if a picture that the job begins with is held: one with the same content, or the parent's
        picture of the nearest ancestor whose action is in `USES_PARENT_PICTURE`.

        A picture that retention removed by age is no obstacle: jobs made from it stay usable.
        """
        for needs_check, file in await self._store.query(reviews.find_same_pictures, required_blobs(record.task)):
            if is_held(needs_check, file):
                raise UserError(hold_reason(file.image, file), 403)
        while record.parent is not None and record.action not in USES_PARENT_PICTURE:
            ancestor = await self._store.get_job(record.parent[0])
            if ancestor is None:
                return
            record = ancestor
        if record.parent is None:
            return
        try:
            await self._gallery.find_visible(*record.parent)
        except UserError as error:
            if error.status == HELD_STATUS:
                raise

    @asynccontextmanager
    async def protect_files(
        self, inputs: Sequence[StoredInput], contents: dict[str, bytes] | None = None
    ) -> AsyncGenerator[None]:
        """Keep jobs' inputs in storage while the jobs are written, in turn with tasks that remove pictures.

        At the end, remove inputs that no job uses, since the job was refused. Raises `UserError`.
        """
        names = sorted({file.sha256 for file in inputs})
        async with AsyncExitStack() as locks:
            for name in names:
                await locks.enter_async_context(self._picture_store.lock(name))
            try:
                for name in names:
                    await self._ensure_stored(name, (contents or {}).get(name))
                yield
            finally:
                for name in contents or {}:
                    await self._drop_unused(name)

    async def _drop_unused(self, name: str) -> None:
        """Drop an input that no job uses. A failure is only logged: the answer is already decided."""
        try:
            if await self._store.query(deletion_steps.is_unused, name):
                await self._picture_store.delete(name)
        except (DatabaseUnavailable, OSError) as error:
            log.warning("picture %s may be stored without a job: %s", name, error)

    async def _ensure_stored(self, name: str, content: bytes | None) -> None:
        try:
            if content is not None:
                await self._picture_store.put(content)
            elif not await self._picture_store.has(name):
                raise UserError(INIT_IMAGE_GONE, 404)
        except OSError as error:
            raise UserError("Pictures cannot be stored just now: try again soon.", 429) from error
