"""Errors in OpenAI's shape: one object with `message`, `type`, `param` and `code`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from aiohttp import web

from bot.domain.errors import HttpStatus, UserError
from bot.jobs.attended_requests import FeedClosed, PicturesMissing
from bot.web.middleware import Refusal
from bot.web.routes import answer_json

DEFAULT_RETRY_SECONDS = 5  # after a limit that does not say when it ends
MAX_CLIENT_WAIT = 60  # seconds; OpenAI's clients wait no longer by themselves
STATUSES: Mapping[int, int] = MappingProxyType({410: 404, 422: 400})  # that its clients have no class for, or another
TYPES: Mapping[int, str] = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)  # of other statuses: invalid_request_error, or from 500 on server_error
CODES: Mapping[int, str] = MappingProxyType(
    {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}
)


class FieldError(UserError):
    """A refused field of the body. `param`: its name; `code`: for programs."""

    def __init__(self, param: str, sentence: str, *, status: HttpStatus = 400, code: str = "invalid_value") -> None:
        super().__init__(sentence, status)
        self.param = param
        self.code = code


class OpenAIErrorDetails(msgspec.Struct, frozen=True):
    """What is wrong, and with which field, if it is one."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(msgspec.Struct, frozen=True):
    """Why not, in OpenAI's shape."""

    error: OpenAIErrorDetails


def shape_error(refusal: Refusal) -> web.Response:
    """Return an error as OpenAI's clients read it, and when to try again."""
    status = 401 if refusal.is_stranger else STATUSES.get(refusal.status, refusal.status)
    response = answer_json(OpenAIError(describe_error(refusal.cause, refusal.sentence, status)), status)
    if isinstance(refusal.cause, (PicturesMissing, FeedClosed)):
        response.headers["X-Should-Retry"] = "false"  # clients would draw the same again, twice
    if status == 429:
        wait_seconds = refusal.retry_after or DEFAULT_RETRY_SECONDS
        response.headers["Retry-After"] = str(wait_seconds)
        response.headers["X-Should-Retry"] = "true" if wait_seconds <= MAX_CLIENT_WAIT else "false"
    return response


def describe_error(cause: Exception, sentence: str, status: int) -> OpenAIErrorDetails:
    """Return what is wrong."""
    status = STATUSES.get(status, status)
    param, code = (cause.param, cause.code) if isinstance(cause, FieldError) else (None, CODES.get(status))
    error_type = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    if isinstance(cause, PicturesMissing) and cause.is_held:
        error_type = "image_generation_user_error"
        code = "moderation_blocked"
    return OpenAIErrorDetails(sentence, error_type, param, code)
