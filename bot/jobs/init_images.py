"""Init, control and reference pictures: as a request names them, as a job needs them, and the way between.

Front ends build `InitImages`, frozen values; services check the rules before they fetch anything. The loader fetches,
decodes and stores files by their SHA-256. The transaction that writes the job records them like its pictures, so they
are deleted with it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import get_args

from bot.domain.concurrency import PerMemberLimit
from bot.domain.dto import InputKind, Member, StoredInput
from bot.domain.errors import UserError
from bot.domain.texts import INIT_IMAGE_GONE
from bot.jobs.views import JobViews, refusal_reason
from bot.pictures.gallery import Gallery
from bot.pictures.moderation_status import hold_reason, is_held
from bot.pictures.picture_store import PictureStore
from bot.pictures.uploads.image_decoding import OUTPUT_SIDE
from bot.pictures.uploads.image_links import (
    FETCH_FAILED,
    FetchFile,
    FileUnavailable,
    check_link,
    parse_own_picture,
    split_leading_links,
)
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES, DecodedImage, MemoryLimiter, UploadDecoder
from bot.store import DatabaseUnavailable, JobRecord, Store
from bot.store.deletion import deletion_steps
from bot.store.jobs import queries
from bot.store.moderation import incidents
from engine.contract import (
    MAX_CONTROLS,
    MAX_INIT_IMAGES,
    MAX_REFERENCES,
    ImageToImage,
    InitImage,
    Recipe,
    required_blobs,
)

DECODED_BYTES = 3 * OUTPUT_SIDE * OUTPUT_SIDE  # the most bytes of one decoded picture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file at Discord. `max_bytes`: a bound on its size; `missing_text`: the error text if it is gone."""

    url: str
    max_bytes: int = MAX_UPLOAD_BYTES
    missing_text: str = FETCH_FAILED


@dataclass(frozen=True)
class JobImageRef:
    """A finished picture: its job, and its index counted from 0."""

    job: str
    index: int


ImageInput = bytes | RemoteFile | JobImageRef


@dataclass(frozen=True)
class InitImages:
    """Init images in order, with an optional mask and optional weights, and pictures that the images follow.

    `controls` are for control networks, `references` for reference adapters; the prompt's flags name these.
    `is_mask_transparency`: the mask is transparent where the picture is painted anew, as other programs' masks are.
    """

    pictures: tuple[ImageInput, ...] = ()
    mask: bytes | RemoteFile | None = None
    weights: tuple[float, ...] = ()
    controls: tuple[ImageInput, ...] = ()
    references: tuple[ImageInput, ...] = ()
    is_mask_transparency: bool = False

    @property
    def memory_bytes(self) -> int:
        """The most bytes of memory that the files and their decoded pictures take until the job is written."""
        return sum(_byte_size(upload) + DECODED_BYTES for upload in self._uploads())

    def _uploads(self) -> Iterator[bytes | RemoteFile]:
        for image in (*self.pictures, self.mask, *self.controls, *self.references):
            if isinstance(image, (bytes, RemoteFile)):
                yield image


class PageAddresses:
    """The base addresses of our page, which adds them when it knows them. Our own pictures need no download."""

    def __init__(self) -> None:
        self._addresses: dict[str, None] = {}

    def add(self, *addresses: str) -> None:
        self._addresses |= dict.fromkeys(addresses)

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)


def split_leading_urls(
    text: str, init_images: InitImages | None, own_addresses: Iterable[str]
) -> tuple[str, InitImages | None]:
    """Split leading URLs off a prompt; return the rest, and the init images with those pictures added.

    `own_addresses`: base addresses of our page, whose pictures have a job. Raises `UserError` for any other address.
    """
    urls, prompt = split_leading_links(text)
    if not urls:
        return text, init_images
    init_images = init_images or InitImages()
    return prompt, replace(
        init_images, pictures=(*init_images.pictures, *(resolve_url(url, own_addresses) for url in urls))
    )


def resolve_url(url: str, own_addresses: Iterable[str]) -> RemoteFile | JobImageRef:
    """Return the picture at an address: one of ours, or a file at Discord. Raises `UserError` for any other."""
    for base in own_addresses:
        if (job_image := parse_own_picture(url, base)) is not None:
            return JobImageRef(job_image[0], job_image[1] - 1)
    return RemoteFile(check_link(url))


def _byte_size(upload: bytes | RemoteFile) -> int:
    return upload.max_bytes if isinstance(upload, RemoteFile) else len(upload)


# default strength: one picture, a blend, an inpainted area
DEFAULT_STRENGTH = 0.6
BLEND_STRENGTH = 0.5
INPAINT_STRENGTH = 0.9


@dataclass(frozen=True)
class LoadedInitImages:
    """Init, control and reference pictures, and a mask. `new_contents`: those not stored yet, by SHA-256."""

    inputs: tuple[StoredInput, ...]
    new_contents: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels of the first init image, else of the first control picture; None without both."""
        sizes = ((file.width, file.height) for kind in ("input", "control") for file in self._list_kind(kind))
        return next(sizes, None)

    @property
    def control_pictures(self) -> tuple[str, ...]:
        """The SHA-256 of each control picture; without one, that of the first init image."""
        return tuple(file.sha256 for file in self._list_kind("control") or self._list_kind("input")[:1])

    @property
    def reference_pictures(self) -> tuple[str, ...]:
        """The SHA-256 of each reference picture."""
        return tuple(file.sha256 for file in self._list_kind("reference"))

    @property
    def has_control_pictures(self) -> bool:
        """Whether a picture was given for control alone."""
        return bool(self._list_kind("control"))

    def _list_kind(self, kind: InputKind) -> tuple[StoredInput, ...]:
        return tuple(file for file in self.inputs if file.kind == kind)

    def recipe_part(self, strength: float | None) -> ImageToImage | None:
        """Return the recipe's start, None without init images; without a `strength`, with the default one."""
        if not self._list_kind("input"):
            return None
        masks = [file.sha256 for file in self.inputs if file.kind == "mask"]
        pictures = tuple(InitImage(file.sha256, file.weight) for file in self._list_kind("input"))
        default_strength = INPAINT_STRENGTH if masks else BLEND_STRENGTH if len(pictures) > 1 else DEFAULT_STRENGTH
        return ImageToImage(pictures, default_strength if strength is None else strength, masks[0] if masks else None)


async def decode_init_images(
    upload_decoder: UploadDecoder,
    contents: Sequence[bytes],
    mask: bytes | None,
    weights: Sequence[float] = (),
    controls: Sequence[bytes] = (),
    references: Sequence[bytes] = (),
) -> LoadedInitImages:
    """Decode pictures and a mask. Raises `UserError`."""
    check_image_counts(len(contents), len(controls), len(references), has_mask=mask is not None)
    pictures = [await upload_decoder.decode_picture(content) for content in contents]
    decoded_mask = (
        None if mask is None else await upload_decoder.decode_mask(mask, shape=(pictures[0].width, pictures[0].height))
    )
    return combine_init_images(
        pictures,
        decoded_mask,
        weights,
        [await upload_decoder.decode_picture(content, label="control picture") for content in controls],
        [await upload_decoder.decode_picture(content, label="reference picture") for content in references],
    )


def check_image_counts(init_images: int, controls: int, references: int, *, has_mask: bool) -> None:
    """Raise `UserError` for no picture, more than a job takes, or a mask without its picture."""
    has_others = controls + references > 0
    if not (0 if has_others and not has_mask else 1) <= init_images <= MAX_INIT_IMAGES:
        raise UserError(f"One to {MAX_INIT_IMAGES} pictures may begin a job, and these are {init_images}.")
    for count, most, noun in ((controls, MAX_CONTROLS, "control"), (references, MAX_REFERENCES, "reference")):
        if count > most:
            raise UserError(f"A job takes at most {most} {noun} pictures, and these are {count}.")


def combine_init_images(
    pictures: Sequence[DecodedImage | StoredInput],
    mask: DecodedImage | None,
    weights: Sequence[float] = (),
    controls: Sequence[DecodedImage | StoredInput] = (),
    references: Sequence[DecodedImage | StoredInput] = (),
) -> LoadedInitImages:
    """Combine decoded pictures with stored ones. Raises `UserError` for weights that do not fit."""
    all_images = (*pictures, mask, *controls, *references)
    decoded_images = [image for image in all_images if isinstance(image, DecodedImage)]
    masks = () if mask is None else (_stored_input("mask", mask),)
    notes = (note for image in decoded_images if image is not mask for note in image.notes)
    contents = {image.sha256: image.png for image in decoded_images}
    inputs = (
        *with_weights(_stored_inputs("input", pictures), weights),
        *masks,
        *_stored_inputs("control", controls),
        *_stored_inputs("reference", references),
    )
    return LoadedInitImages(inputs, contents, tuple(dict.fromkeys(notes)))


def with_weights(pictures: tuple[StoredInput, ...], weights: Sequence[float]) -> tuple[StoredInput, ...]:
    """Set the pictures' weights. Raises `UserError` if their number differs, or one is out of range."""
    if not weights:
        return pictures
    if len(weights) != len(pictures) or not all(0 < value <= 100 for value in weights):
        raise UserError("Each picture takes one weight above 0 and at most 100.")
    return tuple(replace(value, weight=weight) for value, weight in zip(pictures, weights, strict=True))


def _stored_inputs(kind: InputKind, images: Sequence[DecodedImage | StoredInput]) -> tuple[StoredInput, ...]:
    return tuple(
        replace(image, kind=kind) if isinstance(image, StoredInput) else _stored_input(kind, image) for image in images
    )


def _stored_input(kind: InputKind, image: DecodedImage) -> StoredInput:
    return StoredInput(kind, image.sha256, len(image.png), image.width, image.height)


USES_PARENT_PICTURE = (
    "edit",
    "zoom",
    "pan",
    "branch",
)  # these actions begin with the parent's picture; others with the parent's own inputs
HELD_STATUS = 403


@dataclass(eq=False)
class InitImageLoader:
    """Fetches, decodes and stores init images."""

    store: Store
    picture_store: PictureStore
    gallery: Gallery
    job_views: JobViews
    upload_decoder: UploadDecoder
    fetch: FetchFile

    def __post_init__(self) -> None:
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
                mask = await self.upload_decoder.decode_mask(content, shape=shape, is_transparency=is_transparency)
            yield combine_init_images(pictures, mask, init_images.weights, controls, references)

    async def load_upload(self, member: Member, upload: bytes | RemoteFile) -> DecodedImage:
        """Fetch and decode an image that is no init image, in its member's turn. Raises `UserError`."""
        async with self.reserve_turn(member), self._memory_limiter.reserve(InitImages((upload,)).memory_bytes):
            return await self.upload_decoder.decode_picture(await self._fetch_bytes(upload))

    async def read_recipe_text(self, member: Member, upload: bytes) -> str:
        """Return the recipe that an uploaded picture carries, in its member's turn. Raises `UserError`."""
        async with self.reserve_turn(member), self._memory_limiter.reserve(InitImages((upload,)).memory_bytes):
            return await self.upload_decoder.read_recipe_text(upload)

    async def _load_image(self, member: Member, image: ImageInput, label: str) -> DecodedImage | StoredInput:
        if not isinstance(image, JobImageRef):
            return await self.upload_decoder.decode_picture(await self._fetch_bytes(image), label=label)
        if reason_text := refusal_reason("vary", member, await self.job_views.load_record(image.job)):
            raise UserError(reason_text, 403)
        stored_file = await self.gallery.find_visible(image.job, image.index)
        return StoredInput("input", stored_file.sha256, stored_file.bytes, stored_file.width, stored_file.height)

    async def _fetch_bytes(self, upload: bytes | RemoteFile) -> bytes:
        if isinstance(upload, bytes):
            return upload
        try:
            return await self.fetch(upload.url, upload.max_bytes)
        except FileUnavailable as error:
            raise UserError(upload.missing_text, 404) from error

    async def load_ladder(self, job: str, index: int) -> StoredInput:
        """Return the ladder of a finished image that may be shown. Raises `UserError` if it has none."""
        ladder = await self.gallery.find_ladder(job, index)
        return StoredInput("branch", ladder.sha256, ladder.bytes, ladder.width, ladder.height)

    async def inputs_of(self, record: JobRecord) -> tuple[StoredInput, ...]:
        """Return the inputs of a job, for another job with the same inputs.

        Raises `UserError` if an input was deleted with its own job (404), or is held for review (403).
        """
        stored_files = await self.store.query(queries.list_pictures, [record.id])
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
        """Return a job's control and reference pictures that `recipe` still follows. Raises as `inputs_of` does."""
        kinds: dict[str, InputKind] = {each.picture: "reference" for each in recipe.references}
        kinds |= {each.picture: "control" for each in recipe.controls}
        inputs = {file.sha256: file for file in await self.inputs_of(record)} if kinds else {}
        return tuple(replace(inputs[sha256], kind=kind) for sha256, kind in kinds.items())

    async def _check_not_held(self, record: JobRecord) -> None:
        """Raise `UserError` if a picture that the job begins with is held: one with the same content, or the parent's
        picture of the nearest ancestor whose action is in `USES_PARENT_PICTURE`.

        A picture that retention removed by age is no obstacle: jobs made from it stay usable.
        """
        for needs_check, file in await self.store.query(incidents.find_same_pictures, required_blobs(record.task)):
            if is_held(needs_check, file):
                raise UserError(hold_reason(file.image, file), 403)
        while record.parent is not None and record.action not in USES_PARENT_PICTURE:
            ancestor = await self.store.get_job(record.parent[0])
            if ancestor is None:
                return
            record = ancestor
        if record.parent is None:
            return
        try:
            await self.gallery.find_visible(*record.parent)
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
                await locks.enter_async_context(self.picture_store.lock(name))
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
            if await self.store.query(deletion_steps.is_unused, name):
                await self.picture_store.delete(name)
        except (DatabaseUnavailable, OSError) as error:
            log.warning("picture %s may be stored without a job: %s", name, error)

    async def _ensure_stored(self, name: str, content: bytes | None) -> None:
        try:
            if content is not None:
                await self.picture_store.put(content)
            elif not await self.picture_store.has(name):
                raise UserError(INIT_IMAGE_GONE, 404)
        except OSError as error:
            raise UserError("Pictures cannot be stored just now: try again soon.", 429) from error
