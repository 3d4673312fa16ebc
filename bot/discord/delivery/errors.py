"""Errors of one message in Discord, by what to do about them, and sentences that tell the member why.

Knows discord.py's errors and Discord's codes; knows nothing of jobs. Any other error passes unchanged.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import aiohttp
import discord

DEAD_TOKEN_CODES = (10015, 50027)  # unknown webhook, invalid webhook token
TOO_OLD = 30046  # a 429 for a message older than an hour that was edited too often; waiting does not help
TOO_LARGE = 40005
TOO_MANY_CONVERSATIONS = 40003
SLOW_MODE = 20016  # does not limit bots, Discord says; if it ever does, waiting helps
SENTENCES_BY_CODE: Mapping[int, str] = MappingProxyType(
    {
        10003: "Its channel was deleted.",
        10004: "I am not in its server any more.",
        10008: "Its message was deleted.",
        10013: "Discord does not know this account any more.",
        TOO_OLD: "Its message is too old to be changed.",
        50001: "I can no longer see its channel.",
        50007: "Your direct messages are closed to me.",
        50013: "I am not allowed to write in its channel.",
        50083: "Its thread is archived.",
        50278: "We share no server any more, so I cannot write to you.",
        160005: "Its thread is locked.",
        200000: "The server's AutoMod did not let it through.",
        200001: "The server's AutoMod did not let it through.",
        240000: "Discord did not let a link in it through.",
    }
)
FIRST_CODE = 10_000  # smaller codes are not about an object in Discord
UNKNOWN_REASON = "Discord does not let me show it there any more."


class RetryLater(Exception):
    """A retry may work after `seconds`: there is an `outage`, a lost connection, or a rate limit (`rate_limited`)."""

    def __init__(self, seconds: float, reason: object, *, rate_limited: bool = False, outage: bool = False) -> None:
        super().__init__(str(reason))
        self.seconds = seconds
        self.rate_limited = rate_limited
        self.outage = outage


class DestinationGone(Exception):
    """The bot cannot edit this message, or cannot write in this channel, and waiting does not help. `sentence` tells
    the member.
    """

    def __init__(self, reason: object, sentence: str = UNKNOWN_REASON) -> None:
        super().__init__(str(reason))
        self.sentence = sentence


class TokenExpired(Exception):
    """The interaction's token has expired: do not use it again. The message may still be there."""


class RequestRejected(Exception):
    """Discord rejects this request as the bot's mistake, with this `code`; it would reject a retry too."""

    def __init__(self, reason: object, code: int) -> None:
        super().__init__(str(reason))
        self.code = code


class FileTooLarge(Exception):
    """Discord does not accept a file of this size here."""


@contextmanager
def translate_errors() -> Generator[None]:
    """Translate discord.py's errors into ours."""
    try:
        yield
    except discord.RateLimited as error:
        raise RetryLater(error.retry_after, error, rate_limited=True) from error
    except discord.HTTPException as error:
        raise _delivery_error(error) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RetryLater(2.0, f"{type(error).__name__}: {error}", outage=True) from error


def _delivery_error(error: discord.HTTPException) -> Exception:
    if error.code == TOO_OLD:
        return DestinationGone(str(error), SENTENCES_BY_CODE[TOO_OLD])
    if not error.code and error.status in (401, 403, 404, 429) and _is_html_page(error):
        return RetryLater(60.0, "a page instead of Discord's answer", outage=True, rate_limited=error.status == 429)
    if error.status == 429 and error.code != SLOW_MODE:
        return RetryLater(5.0, error, rate_limited=True)
    if error.status >= 500:
        return RetryLater(2.0, error, outage=True)
    if error.status == 413 or error.code == TOO_LARGE:
        return FileTooLarge(str(error))
    if error.code in DEAD_TOKEN_CODES:
        return TokenExpired(str(error))
    if error.code == TOO_MANY_CONVERSATIONS:
        return RetryLater(60.0, error)
    if error.code == SLOW_MODE:
        return RetryLater(30.0, error)
    if error.status == 401:  # the bot's own token: the message is not gone
        return RetryLater(60.0, error)
    if error.code in SENTENCES_BY_CODE or (error.status in (403, 404) and error.code >= FIRST_CODE):
        return DestinationGone(str(error), SENTENCES_BY_CODE.get(error.code, UNKNOWN_REASON))
    if error.status in (403, 404):  # not about this message: a proxy or Discord has an outage
        return RetryLater(30.0, error, outage=True)
    return RequestRejected(error, error.code)


def _is_html_page(error: discord.HTTPException) -> bool:
    """Return whether the body is an HTML page from Cloudflare or a proxy: Discord itself answers in JSON."""
    return error.text.lstrip().startswith("<")
