"""Pictures that a JSON body names: base64 in a data URL, or an address that Darkroom reads from."""

from __future__ import annotations

from collections.abc import Iterable

from bot.apis.openai.bodies import JsonEditBody
from bot.apis.openai.errors import FieldError
from bot.domain.errors import UserError
from bot.jobs.init_images import ImageInput, InitImages, JobImageRef, resolve_url
from bot.web.request_body import DATA_URL, decode_picture


def read_references(body: JsonEditBody, own_addresses: Iterable[str]) -> InitImages:
    """Return the body's pictures and mask. Raises `UserError`, or `FieldError` for one that cannot be read.

    It decodes megabytes: async callers use a thread.
    """
    addresses = tuple(own_addresses)
    pictures = read_picture_urls([reference.image_url for reference in body.images], "images", addresses)
    mask = None if body.mask is None else _read_reference(body.mask.image_url, "mask", addresses)
    if isinstance(mask, JobImageRef):
        raise FieldError("mask", "A finished picture is no mask: send the mask as a data URL.")
    return InitImages(pictures, mask, is_mask_transparency=mask is not None)


def read_picture_urls(urls: Iterable[str], param: str, own_addresses: Iterable[str]) -> tuple[ImageInput, ...]:
    """Return the pictures at these addresses; `param`: the field that has them."""
    addresses = tuple(own_addresses)
    return tuple([_read_reference(url, param, addresses) for url in urls])


def _read_reference(url: str, param: str, own_addresses: Iterable[str]) -> ImageInput:
    if not url.startswith(DATA_URL):
        return resolve_url(url, own_addresses)
    try:
        return decode_picture(url)
    except UserError as error:
        raise FieldError(param, error.sentence, status=error.status) from error
