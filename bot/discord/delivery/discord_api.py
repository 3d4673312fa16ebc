"""Discord's message API for cards: edits a message, posts one, finds one again; and its errors, by what to do then.

Progress uses the interaction's token while it is valid: each token has its own bucket, and works where the bot cannot
see the channel. Later the same message is edited as an ordinary one of its channel. Rate limits from Discord's response
headers go to the edit policy: discord.py keeps these headers to itself, so the client's own requests are traced.

The methods of `MessageClient` raise `RetryLater`, `DestinationGone`, `TokenExpired`, `RequestRejected` and
`FileTooLarge`; any other error passes unchanged. Knows cards and destinations; knows nothing of jobs' states or of when
to send.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import discord
from discord.http import MultipartParameters, Route, handle_message_parameters

from bot.discord.cards.job_cards import Card
from bot.discord.cards.pictures import PictureFile, to_discord_file
from bot.discord.components.buttons import build_view
from bot.discord.delivery.edit_policy import EditPolicy
from bot.discord.responses import NO_MENTIONS

if TYPE_CHECKING:
    from bot.discord.client import DarkroomClient

Address = Mapping[str, str]

NONCE_SECONDS = 120.0  # seconds for which Discord surely remembers a nonce
MESSAGE_PATH = "/webhooks/{webhook_id}/{webhook_token}/messages/{message_id}"
ORIGINAL_PATH = "/webhooks/{webhook_id}/{webhook_token}/messages/@original"
EDIT_TIMEOUT = 90.0  # seconds of one edit: discord.py would wait for many minutes
OLD_MESSAGE_AGE = 3600.0  # seconds: edits of an older message have another limit
CANNOT_READ_CHANNEL = "I may not read its channel, and cannot tell whether I wrote there already."
UNREADABLE_HISTORY = 160002  # Discord's code: a reply needs the permission to read


@dataclass(frozen=True)
class OutgoingMessage:
    """A new message. `nonce` keeps Discord from accepting it twice within minutes, `ping_user` is the user whom it
    pings.
    """

    card: Card
    files: tuple[PictureFile, ...]
    nonce: str
    ping_user: str = ""
    reply_to: str = ""


def is_token_valid(address: Address, now: float) -> bool:
    """Return whether the interaction's token may still be used."""
    return bool(address.get("token")) and now < float(address.get("token_until") or 0)


def edit_bucket(address: Address, now: float) -> str:
    """Return the rate-limit bucket of an edit here."""
    return token_bucket(address["token"]) if is_token_valid(address, now) else f"channel:{address.get('channel', '')}"


def token_bucket(token: str) -> str:
    """Return the bucket of an interaction's token, by a name that is no secret."""
    return f"token:{hashlib.sha256(token.encode()).hexdigest()[:16]}"


def post_bucket(address: Address) -> str:
    """Return the rate-limit bucket of a new message here; a direct conversation goes by its user."""
    return f"post:{address['channel']}" if address.get("channel") else f"direct:{address.get('user', '')}"


class MessageClient:
    """The courier's access to Discord."""

    def __init__(self, client: DarkroomClient) -> None:
        self._client = client

    async def wait_until_ready(self) -> None:
        """Return once the client has logged in."""
        await self._client.login_done.wait()

    def is_response_pending(self, address: Address) -> bool:
        """Return whether the first response to this destination's request is being sent."""
        return address.get("token") in self._client.pending_tokens

    async def edit(
        self,
        address: Address,
        card: Card,
        files: Sequence[PictureFile],
        now: float,
        *,
        keep_files: bool = True,
        timeout: float = EDIT_TIMEOUT,
    ) -> None:
        """Edit the destination's message; without files it keeps its own, unless `keep_files` is False.

        Raises `RetryLater` also for an edit that takes longer than `timeout` seconds.
        """
        attachments: Any = [to_discord_file(card, file) for file in files]
        if not files and keep_files:
            attachments = discord.utils.MISSING
        with translate_errors():
            sending = asyncio.ensure_future(self._send_edit(address, card, attachments, now))
            await self._wait_with_timeout(sending, timeout)

    async def _wait_with_timeout(self, edit_task: asyncio.Future[None], timeout: float) -> None:
        """Wait for `timeout` seconds, then cancel; but not while discord.py waits for the global rate limit to end.

        Cancelled there, discord.py would never send any request again.
        """
        try:
            await asyncio.wait({edit_task}, timeout=timeout)
            global_limit_over = getattr(self._client.http, "_global_over", None)
            if not edit_task.done() and isinstance(global_limit_over, asyncio.Event):
                await global_limit_over.wait()
        finally:
            was_cancelled = edit_task.cancel()
            await asyncio.wait({edit_task})
        if was_cancelled and edit_task.cancelled():
            raise TimeoutError(f"not done within {timeout:.0f} s")
        edit_task.result()

    async def _send_edit(self, address: Address, card: Card, files: Any, now: float) -> None:
        if is_token_valid(address, now):
            await self._edit_by_token(address, card, files)
        else:
            await self._edit_in_channel(address, card, files, now)

    async def post_message(self, address: Address, message: OutgoingMessage) -> int:
        """Post a message in the destination's channel; return its id."""
        try:
            with translate_errors():
                return await self._try_post(address, message, message.reply_to)
        except RequestRejected as error:
            if error.code != UNREADABLE_HISTORY:
                raise
        with translate_errors():
            return await self._try_post(address, message, "")

    async def _try_post(self, address: Address, message: OutgoingMessage, reply_to: str) -> int:
        card = message.card
        missing = discord.utils.MISSING
        channel = self._channel(address)
        reference = (
            discord.MessageReference(message_id=int(reply_to), channel_id=channel.id, fail_if_not_exists=False)
            if reply_to
            else missing
        )
        with handle_message_parameters(
            content=card.content,
            view=build_view(card) or missing,
            files=[to_discord_file(card, file) for file in message.files] or missing,
            nonce=message.nonce,
            allowed_mentions=_ping_only(message.ping_user),
            message_reference=reference.to_message_reference_dict() if reply_to else missing,
        ) as params:
            response = await self._client.http.send_message(channel.id, params=params)
        return int(response["id"])

    async def open_direct_channel(self, user: str) -> int:
        """Return the channel of the direct conversation with a user."""
        with translate_errors():
            return int((await self._client.http.start_private_message(int(user)))["id"])

    async def find_response(self, address: Address, job: str, requested_at: float, now: float) -> int | None:
        """Return the response to the request for `job`, if it was sent before a crash lost its id."""
        with translate_errors():
            if is_token_valid(address, now) and (message_id := await self._find_original(address, job)):
                return message_id
        with translate_errors():
            try:
                return await find_message(
                    self._channel(address), self._client.user, job, requested_at, standalone=False
                )
            except (discord.NotFound, discord.Forbidden):
                return None

    async def find_posted_message(self, address: Address, job: str, now: float) -> int | None:
        """Return the separate message about `job`, if the bot posted it before a crash lost its id.

        `address` says since when it may exist. Raises `DestinationGone` if the bot may not read the channel and Discord
        may have forgotten the nonce: no message is better than two.
        """
        since = float(address.get("posting") or 0.0)
        with translate_errors():
            try:
                return await find_message(self._channel(address), self._client.user, job, since, standalone=True)
            except (discord.NotFound, discord.Forbidden) as error:
                if since and now - since > NONCE_SECONDS:
                    raise DestinationGone(error, CANNOT_READ_CHANNEL) from error
                return None

    async def _edit_by_token(self, address: Address, card: Card, files: Any) -> None:
        # Through the client's own HTTP, not a Webhook: all requests share one rate limiter and one trace.
        with handle_message_parameters(
            content=card.content, view=build_view(card), attachments=files, allowed_mentions=NO_MENTIONS
        ) as params:
            await self._request("PATCH", MESSAGE_PATH, address, params)

    async def _edit_in_channel(self, address: Address, card: Card, files: Any, now: float) -> None:
        message = self._channel(address).get_partial_message(int(address["message"]))
        try:
            await message.edit(
                content=card.content, view=build_view(card), attachments=files, allowed_mentions=NO_MENTIONS
            )
        except discord.RateLimited as error:  # from discord.py itself, without Discord's code
            if now - message.created_at.timestamp() < OLD_MESSAGE_AGE:
                raise
            raise DestinationGone(error, SENTENCES_BY_CODE[TOO_OLD]) from error

    async def _find_original(self, address: Address, job: str) -> int | None:
        try:
            message = await self._request("GET", ORIGINAL_PATH, address)
        except (discord.NotFound, discord.Forbidden):
            return None
        return int(message["id"]) if job in jobs_of_buttons(message.get("components") or ()) else None

    async def _request(
        self, method: str, path: str, address: Address, params: MultipartParameters | None = None
    ) -> dict[str, Any]:
        route = Route(
            method,
            path,
            webhook_id=int(address["application"]),
            webhook_token=address["token"],
            message_id=address.get("message"),
        )
        if params is None:
            return await self._client.http.request(route)
        if params.files:
            return await self._client.http.request(route, files=params.files, form=params.multipart)
        return await self._client.http.request(route, json=params.payload)

    def _channel(self, address: Address) -> discord.PartialMessageable:
        if not address.get("channel"):
            raise DestinationGone("it has no channel", "Its channel is not known.")
        guild = int(address["guild"]) if address.get("guild") else None
        return self._client.get_partial_messageable(int(address["channel"]), guild_id=guild)


def _ping_only(user: str) -> discord.AllowedMentions:
    if not user:
        return NO_MENTIONS
    return discord.AllowedMentions(everyone=False, roles=False, replied_user=False, users=[discord.Object(int(user))])


NEWEST_LIMIT = 50  # of a channel's newest messages, searched first
SEARCH_LIMIT = 1000  # messages searched, from the earliest time at which ours may have been sent
CLOCK_MARGIN = 300.0  # seconds by which our clock may be ahead of Discord's


async def find_message(
    channel: discord.PartialMessageable,
    bot_user: discord.ClientUser | None,
    job: str,
    since: float,
    *,
    standalone: bool,
) -> int | None:
    """Return the bot's message about `job`: a `standalone` message, or a response; None if there is none.

    It is among the first messages after `since` (seconds since 1970, 0: unknown), however many follow. Raises
    discord.py's errors.
    """
    histories = [channel.history(limit=NEWEST_LIMIT)]
    if since:
        after = datetime.fromtimestamp(since - CLOCK_MARGIN, UTC)
        histories.append(channel.history(limit=SEARCH_LIMIT, after=after, oldest_first=True))
    for history in histories:
        async for message in history:
            is_standalone = message.interaction_metadata is None
            if (
                message.author == bot_user
                and is_standalone == standalone
                and job in jobs_of_buttons(row.to_dict() for row in message.components)
            ):
                return message.id
    return None


def jobs_of_buttons(components: Iterable[Any]) -> set[str]:
    """Return the jobs that a message's buttons are about."""
    job_ids: set[str] = set()
    for component in components:
        job_ids |= jobs_of_buttons(component.get("components") or ())
        job_ids.update(str(component.get("custom_id") or "").split(":")[1:2])
    return job_ids


MAX_WINDOW = 3600.0  # longest window in seconds that we believe
CHANNEL_EDIT_PATH = re.compile(r"/channels/(\d+)/messages/\d+$")
NEW_MESSAGE_PATH = re.compile(r"/channels/(\d+)/messages$")
TOKEN_EDIT_PATH = re.compile(r"/webhooks/\d+/([^/]+)/messages/[^/]+$")


def bucket_of_request(method: str, path: str) -> str | None:
    """Return the policy's name of the bucket that counts a request; None for requests of other kinds."""
    if method == "POST":
        match = NEW_MESSAGE_PATH.search(path)
        return f"post:{match[1]}" if match else None
    if method != "PATCH":
        return None
    if match := CHANNEL_EDIT_PATH.search(path):
        return f"channel:{match[1]}"
    if match := TOKEN_EDIT_PATH.search(path):
        return token_bucket(match[1])
    return None


def parse_limits(headers: Mapping[str, str]) -> tuple[int, int, float] | None:
    """Return requests in a window, those left of it, and seconds until it ends; None if the headers lack them.

    Must not raise: that would fail a request that Discord has accepted.
    """
    try:
        limit = int(headers["X-RateLimit-Limit"])
        remaining = int(headers["X-RateLimit-Remaining"])
        reset_after = float(headers["X-RateLimit-Reset-After"])
    except (KeyError, ValueError):
        return None
    return (limit, remaining, reset_after) if limit > 0 and remaining >= 0 and 0 <= reset_after <= MAX_WINDOW else None


def trace_rate_limits(edit_policy: EditPolicy[Any], clock: Callable[[], float]) -> aiohttp.TraceConfig:
    """Return a trace for `discord.Client(http_trace=…)` that keeps `edit_policy` informed."""

    async def on_request_end(
        _session: aiohttp.ClientSession, _context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        rate_limit = parse_limits(params.response.headers)
        bucket = bucket_of_request(params.method, params.url.path)
        if bucket is not None and rate_limit is not None:
            limit, remaining, reset_after = rate_limit
            edit_policy.apply_limits(bucket, limit, remaining, clock() + reset_after)

    config = aiohttp.TraceConfig()
    config.on_request_end.append(on_request_end)
    return config


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
