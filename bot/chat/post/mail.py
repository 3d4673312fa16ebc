"""Sends cards to Discord: edits a message, posts one, finds one again. Troubles come out as those of `troubles`.

Progress goes over the interaction's token while it lives: each token has a bucket of its own, and Discord takes it also
where the bot may not see the channel. After that the same message is edited as an ordinary one of its channel. Knows
cards and places; knows nothing of jobs' states or of when to send.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import discord
from discord.http import MultipartParameters, Route, handle_message_parameters

from bot.chat.attached import attached
from bot.chat.delivery import Picture
from bot.chat.post.search import find, jobs
from bot.chat.post.troubles import TOO_OLD, WHY, Gone, Unwanted, told
from bot.chat.presenter import Card
from bot.chat.presses.buttons import controls
from bot.chat.quiet import QUIET

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient

Where = Mapping[str, str]

NONCES = 120.0  # seconds that Discord surely remembers a nonce
ONE = "/webhooks/{webhook_id}/{webhook_token}/messages/{message_id}"
ORIGINAL = "/webhooks/{webhook_id}/{webhook_token}/messages/@original"
PATIENCE = 90.0  # seconds of one edit: the library would wait for many minutes
OLD = 3600.0  # seconds: edits of an older message have a limit of their own
UNREAD = "I may not read its channel, and cannot tell whether I wrote there already."
UNREADABLE_HISTORY = 160002  # Discord's code: to reply one must be allowed to read


@dataclass(frozen=True)
class Letter:
    """A new message: `nonce` keeps Discord from taking it twice within minutes, `ping` is the one whom it tells."""

    card: Card
    picture: Picture | None
    nonce: str
    ping: str = ""
    reply_to: str = ""


def lives(where: Where, now: float) -> bool:
    """True while the interaction's token may be used."""
    return bool(where.get("token")) and now < float(where.get("token_until") or 0)


def bucket(where: Where, now: float) -> str:
    """What Discord counts an edit of this place with."""
    return token_bucket(where["token"]) if lives(where, now) else f"channel:{where.get('channel', '')}"


def token_bucket(token: str) -> str:
    """The bucket of an interaction's token, by a name that is no secret."""
    return f"token:{hashlib.sha256(token.encode()).hexdigest()[:16]}"


def post_bucket(where: Where) -> str:
    """What Discord counts a new message of this place with; the conversation with a user goes by the user."""
    return f"post:{where['channel']}" if where.get("channel") else f"direct:{where.get('user', '')}"


class Mail:
    """The hands of the courier."""

    def __init__(self, client: DarkroomClient) -> None:
        self._client = client

    async def ready(self) -> None:
        """Returns once the client has logged in."""
        await self._client.opened.wait()

    def under_way(self, where: Where) -> bool:
        """True while the first answer to the request of this place is being sent."""
        return where.get("token") in self._client.answering

    async def edit(
        self, where: Where, card: Card, picture: Picture | None, now: float, *, keep: bool = True,
        within: float = PATIENCE,
    ) -> None:  # fmt: skip
        """Edit the place's message; without a picture it keeps the one it has, unless `keep` is False.

        One that is not done `within` so many seconds comes out as `Later`. Raises what `troubles` has.
        """
        files = [attached(card, picture)] if picture else (discord.utils.MISSING if keep else [])
        with told():
            await self._ended(asyncio.ensure_future(self._edited(where, card, files, now)), within)

    async def _ended(self, sending: asyncio.Future[None], within: float) -> None:
        """Wait so long, and give it up. But not while it waits for the limit of all requests together to end.

        Whoever stops the library there, stops all that it will ever be asked to send.
        """
        try:
            await asyncio.wait({sending}, timeout=within)
            everywhere = getattr(self._client.http, "_global_over", None)
            if not sending.done() and isinstance(everywhere, asyncio.Event):
                await everywhere.wait()
        finally:
            late = sending.cancel()
            await asyncio.wait({sending})
        if late and sending.cancelled():
            raise TimeoutError(f"not done within {within:.0f} s")
        sending.result()

    async def _edited(self, where: Where, card: Card, files: Any, now: float) -> None:
        if lives(where, now):
            await self._edit_by_token(where, card, files)
        else:
            await self._edit_in_channel(where, card, files, now)

    async def post(self, where: Where, letter: Letter) -> int:
        """A new message in the place's channel; its id. Raises what `troubles` has."""
        try:
            with told():
                return await self._post(where, letter, letter.reply_to)
        except Unwanted as error:
            if error.code != UNREADABLE_HISTORY:
                raise
        with told():
            return await self._post(where, letter, "")

    async def _post(self, where: Where, letter: Letter, reply_to: str) -> int:
        card, missing = letter.card, discord.utils.MISSING
        channel = self._channel(where)
        to = discord.MessageReference(
            message_id=int(reply_to), channel_id=channel.id, fail_if_not_exists=False
        ) if reply_to else missing  # fmt: skip
        with handle_message_parameters(
            content=card.content,
            view=controls(card) or missing,
            file=attached(card, letter.picture) if letter.picture else missing,
            nonce=letter.nonce,
            allowed_mentions=_only(letter.ping),
            message_reference=to.to_message_reference_dict() if reply_to else missing,
        ) as params:
            sent = await self._client.http.send_message(channel.id, params=params)
        return int(sent["id"])

    async def direct(self, user: str) -> int:
        """The channel of the conversation with a user. Raises what `troubles` has."""
        with told():
            return int((await self._client.http.start_private_message(int(user)))["id"])

    async def find_answer(self, where: Where, job: str, asked: float, now: float) -> int | None:
        """The message that answered the request for `job`, if we sent one and did not live to note its id."""
        with told():
            if lives(where, now) and (found := await self._original(where, job)):
                return found
        with told():
            try:
                return await find(self._channel(where), self._client.user, job, asked, posted=False)
            except (discord.NotFound, discord.Forbidden):
                return None

    async def find_posted(self, where: Where, job: str, now: float) -> int | None:
        """The message about `job` that was posted by itself, if we did so and did not live to note its id.

        `where` says since when that may have been. Raises `Gone` where we may not look and Discord may have forgotten
        the nonce: rather none than two.
        """
        since = float(where.get("posting") or 0.0)
        with told():
            try:
                return await find(self._channel(where), self._client.user, job, since, posted=True)
            except (discord.NotFound, discord.Forbidden) as error:
                if since and now - since > NONCES:
                    raise Gone(error, UNREAD) from error
                return None

    async def _edit_by_token(self, where: Where, card: Card, files: Any) -> None:
        # Through the client's own HTTP, not a Webhook: one rate limiter and one trace for all that we send.
        with handle_message_parameters(
            content=card.content, view=controls(card), attachments=files, allowed_mentions=QUIET
        ) as params:
            await self._request("PATCH", ONE, where, params)

    async def _edit_in_channel(self, where: Where, card: Card, files: Any, now: float) -> None:
        message = self._channel(where).get_partial_message(int(where["message"]))
        try:
            await message.edit(content=card.content, view=controls(card), attachments=files, allowed_mentions=QUIET)
        except discord.RateLimited as error:  # the library's own, without Discord's code
            if now - message.created_at.timestamp() < OLD:
                raise
            raise Gone(error, WHY[TOO_OLD]) from error

    async def _original(self, where: Where, job: str) -> int | None:
        try:
            message = await self._request("GET", ORIGINAL, where)
        except (discord.NotFound, discord.Forbidden):
            return None
        return int(message["id"]) if job in jobs(message.get("components") or ()) else None

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
            raise Gone("it has no channel", "Its channel is not known.")
        guild = int(where["guild"]) if where.get("guild") else None
        return self._client.get_partial_messageable(int(where["channel"]), guild_id=guild)


def _only(user: str) -> discord.AllowedMentions:
    if not user:
        return QUIET
    return discord.AllowedMentions(everyone=False, roles=False, replied_user=False, users=[discord.Object(int(user))])
