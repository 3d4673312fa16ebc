"""Init, control and reference pictures as a request names them, before any is fetched or decoded. Frozen values.

Front ends build them; the services check the rules before they fetch anything (`bot.services.init_images.loader`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from bot.images.uploads.image_decoding import OUTPUT_SIDE
from bot.images.uploads.image_links import FETCH_FAILED, check_link, parse_own_picture, split_leading_links
from bot.images.uploads.upload_decoder import MAX_UPLOAD_BYTES

DECODED_BYTES = 3 * OUTPUT_SIDE * OUTPUT_SIDE  # the most bytes of one decoded picture


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
