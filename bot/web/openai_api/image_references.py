"""Pictures that a JSON body names: base64 in a data URL, or an address that Darkroom reads from."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from bot.images.uploads.upload_decoder import MAX_UPLOAD_BYTES
from bot.services.init_images.request import ImageInput, InitImages, JobImageRef, resolve_url
from bot.web.openai_api.bodies import JsonEditBody
from bot.web.openai_api.errors import FieldError


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
    if not url.startswith("data:"):
        return resolve_url(url, own_addresses)
    header, _, content = url.partition(",")
    if not header.endswith(";base64"):
        raise FieldError(param, "A data URL has its picture in base64, as in data:image/png;base64,…")
    if len(content) > MAX_UPLOAD_BYTES * 4 // 3 + 4:
        raise FieldError(param, f"The picture is too large: the limit is {MAX_UPLOAD_BYTES >> 20} MiB.", status=413)
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise FieldError(param, "The picture is no valid base64.") from error
