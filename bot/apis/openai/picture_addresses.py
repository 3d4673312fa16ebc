"""Addresses of finished pictures for programs that fetch them without a key: signed, and valid for an hour."""

from __future__ import annotations

import hmac
import time
from typing import cast

from aiohttp import web

from bot.apis.openai.answers import convert_picture
from bot.apis.openai.bodies import DrawBody, PictureFormat
from bot.domain.errors import UserError
from bot.jobs.attended_requests import DrawnPicture
from bot.policy.limits import too_often
from bot.web.media import EncodedPictureCache, picture_index_of
from bot.web.middleware import HOST_POLICY, SECURE_COOKIE, SESSION_TOKENS, TOKEN_BUCKETS
from bot.web.sse import SERVICES

CONVERTED_PICTURES = web.AppKey("converted_pictures", EncodedPictureCache)
SIGNED_PATH = "/v1/pictures/"  # pictures whose addresses are signed, for programs that fetch them without a key
VALID_SECONDS = 3600  # as OpenAI's addresses
BAD_ADDRESS = "This address is not valid any more: ask for the picture again."


def sign_address(request: web.Request, picture: DrawnPicture, body: DrawBody, now: float) -> str:
    """Return the address of a picture in the body's format, at the host that the request came to."""
    path = f"{SIGNED_PATH}{picture.job}/{picture.index + 1}.{body.picture_format}"
    quality = "" if body.output_compression is None else str(body.output_compression)
    expires = str(int(now) + VALID_SECONDS)
    signature = request.app[SESSION_TOKENS].sign(f"{path}\n{quality}\n{expires}")
    is_public_host = request.host.lower() == request.app[HOST_POLICY].public_host
    scheme = "https" if is_public_host and request.app[SECURE_COOKIE] else request.scheme
    return f"{scheme}://{request.host}{path}?expires={expires}&quality={quality}&signature={signature}"


async def get_signed_picture(request: web.Request) -> web.Response:
    """Return a picture whose address is signed and has not expired."""
    quality = _check_signature(request)
    if wait_seconds := request.app[TOKEN_BUCKETS].take(request.query["signature"], "file"):  # whoever has the address
        raise too_often(wait_seconds)
    picture_format = cast("PictureFormat", request.match_info["format"])
    gallery = request.app[SERVICES].gallery
    stored_picture = await gallery.find_visible(request.match_info["id"], picture_index_of(request))

    async def convert() -> bytes:
        return await convert_picture(await gallery.read_file(stored_picture), picture_format, quality)

    content = await request.app[CONVERTED_PICTURES].get((stored_picture.sha256, picture_format, str(quality)), convert)
    return web.Response(
        body=content, content_type=f"image/{picture_format}", headers={"Cache-Control": "private, max-age=3600"}
    )


def _check_signature(request: web.Request) -> int | None:
    """Return the quality that the address names. Raises `UserError` (404) for an address that is not ours now."""
    quality = request.query.get("quality", "")
    expires = request.query.get("expires", "")
    expected = request.app[SESSION_TOKENS].sign(f"{request.path}\n{quality}\n{expires}")
    signature = request.query.get("signature", "").encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(signature, expected.encode()) or int(expires) < time.time():
        raise UserError(BAD_ADDRESS, 404)
    return int(quality) if quality else None
