"""Sends cards to Discord: edits a message, posts one, finds one again. Troubles come out as one of four kinds.

Progress goes over the interaction's token while it lives: each token has a bucket of its own, and Discord takes it also
where the bot may not see the channel. After that the same message is edited as an ordinary one of its channel. Knows
cards and places; knows nothing of jobs' states or of when to send.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import discord
from discord.http import MultipartParameters, Route, handle_message_parameters

from bot.chat.buttons import controls
from bot.chat.delivery import Picture
from bot.chat.presenter import Card

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

Where = Mapping[str, str]

SEARCHED = 50  # messages of a channel looked through for one that we lost
ONE = "/webhooks/{webhook_id}/{webhook_token}/messages/{message_id}"
ORIGINAL = "/webhooks/{webhook_id}/{webhook_token}/messages/@original"
QUIET = discord.AllowedMentions.none()
# Discord's codes: unknown webhook, invalid webhook token, thread archived, edits of an old message used up
DEAD_TOKEN, ARCHIVED, TOO_OLD, TOO_LARGE = (10015, 50027), 50083, 30046, 40005


class Later(Exception):
    """It may work after `seconds`: an outage, a broken line, or (`limited`) Discord lets the whole bucket wait."""

    def __init__(self, seconds: float, why: object, *, limited: bool = False) -> None:
        super().__init__(str(why))
        self.seconds = seconds
        self.limited = limited


class Gone(Exception):
    """This message cannot be edited, or this channel not be written to, and waiting will not change that."""


class Expired(Exception):
    """The interaction's token is dead: forget it, the message may still be there."""


class TooLarge(Exception):
    """Discord does not take a file of this size here."""


def lives(where: Where, now: float) -> bool:
    """True while the interaction's token may be used."""
    return bool(where.get("token")) and now < float(where.get("token_until") or 0)


def bucket(where: Where, now: float) -> str:
    """What Discord counts an edit of this place with."""
    return token_bucket(where["token"]) if lives(where, now) else f"channel:{where.get('channel', '')}"


def token_bucket(token: str) -> str:
    """The bucket of an interaction's token, by a name that is no secret."""
    return f"token:{hashlib.sha256(token.encode()).hexdigest()[:16]}"


class Mail:
    """The hands of the courier."""

    def __init__(self, client: DarkroomClient) -> None:
        self._client = client

    async def ready(self) -> None:
        """Returns once the client has logged in."""
        await self._client.opened.wait()

    async def edit(self, where: Where, card: Card, picture: Picture | None, now: float) -> None:
        """Edit the place's message; without a picture it keeps the one it has.

        Raises `Later`, `Gone`, `Expired`, `TooLarge`.
        """
        with _told():
            if lives(where, now):
                await self._edit_by_token(where, card, picture)
            else:
                await self._edit_in_channel(where, card, picture)

    async def post(self, where: Where, card: Card, picture: Picture | None, nonce: str) -> int:
        """A new message in the place's channel; the same `nonce` within minutes does not make a second one."""
        view = controls(card) or discord.utils.MISSING
        file = _file(card, picture) if picture else discord.utils.MISSING
        with _told():
            channel = self._channel(where)
            sent = await channel.send(card.content, file=file, view=view, nonce=nonce[-25:], allowed_mentions=QUIET)
        return sent.id

    async def find(self, where: Where, job: str, now: float) -> int | None:
        """The message that shows `job`, if we sent one and did not live to note its id."""
        with _told():
            if lives(where, now) and (found := await self._original(where, job)):
                return found
            try:
                async for message in self._channel(where).history(limit=SEARCHED):
                    if job in str([row.to_dict() for row in message.components]):
                        return message.id
            except (discord.NotFound, discord.Forbidden):
                return None
        return None

    async def _edit_by_token(self, where: Where, card: Card, picture: Picture | None) -> None:
        # Through the client's own HTTP, not a Webhook: one rate limiter and one trace for all that we send.
        with handle_message_parameters(
            content=card.content,
            view=controls(card),
            attachments=[_file(card, picture)] if picture else discord.utils.MISSING,
            allowed_mentions=QUIET,
        ) as params:
            await self._request("PATCH", ONE, where, params)

    async def _edit_in_channel(self, where: Where, card: Card, picture: Picture | None) -> None:
        message = self._channel(where).get_partial_message(int(where["message"]))
        files = [_file(card, picture)] if picture else discord.utils.MISSING
        await message.edit(content=card.content, view=controls(card), attachments=files, allowed_mentions=QUIET)

    async def _original(self, where: Where, job: str) -> int | None:
        try:
            message = await self._request("GET", ORIGINAL, where)
        except (discord.NotFound, discord.Forbidden):
            return None
        return int(message["id"]) if job in str(message.get("components")) else None

    async def _request(
        self, method: str, path: str, where: Where, params: MultipartParameters | None = None
    ) -> dict[str, Any]:
        route = Route(
            method,
            path,
            webhook_id=int(where["application"]),
            webhook_token=where["token"],
            message_id=where.get("message"),
        )
        if params is None:
            return await self._client.http.request(route)
        if params.files:
            return await self._client.http.request(route, files=params.files, form=params.multipart)
        return await self._client.http.request(route, json=params.payload)

    def _channel(self, where: Where) -> discord.PartialMessageable:
        if not where.get("channel"):
            raise Gone("it has no channel")
        guild = int(where["guild"]) if where.get("guild") else None
        return self._client.get_partial_messageable(int(where["channel"]), guild_id=guild)


def _file(card: Card, picture: Picture) -> discord.File:
    return discord.File(io.BytesIO(picture.payload), picture.name, description=card.alt or None)


@contextmanager
def _told() -> Iterator[None]:
    """Discord's errors as ours."""
    try:
        yield
    except discord.RateLimited as error:
        raise Later(error.retry_after, error, limited=True) from error
    except discord.HTTPException as error:
        raise _meant(error) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Later(2.0, f"{type(error).__name__}: {error}") from error


def _meant(error: discord.HTTPException) -> Exception:
    if error.status == 429:
        return Later(5.0, error, limited=True)
    if error.status >= 500:
        return Later(2.0, error)
    if error.status == 413 or error.code == TOO_LARGE:
        return TooLarge(str(error))
    if error.code in DEAD_TOKEN:
        return Expired(str(error))
    if error.status == 401:  # our own token: nobody's message is gone for that
        return Later(60.0, error)
    if error.status in (403, 404) or error.code in (ARCHIVED, TOO_OLD):
        return Gone(str(error))
    return error
