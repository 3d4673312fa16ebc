"""Discord's message API for cards: edits a message, posts one, finds one again. Raises the errors of `troubles`.

Progress uses the interaction's token while it is valid: each token has its own bucket, and works where the bot cannot
see the channel. Later the same message is edited as an ordinary one of its channel. Knows cards and destinations; knows
nothing of jobs' states or of when to send.
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

NONCES = 120.0  # seconds for which Discord surely remembers a nonce
ONE = "/webhooks/{webhook_id}/{webhook_token}/messages/{message_id}"
ORIGINAL = "/webhooks/{webhook_id}/{webhook_token}/messages/@original"
PATIENCE = 90.0  # seconds of one edit: discord.py would wait for many minutes
OLD = 3600.0  # seconds: edits of an older message have another limit
UNREAD = "I may not read its channel, and cannot tell whether I wrote there already."
UNREADABLE_HISTORY = 160002  # Discord's code: a reply needs the permission to read


@dataclass(frozen=True)
class Letter:
    """A new message. `nonce` keeps Discord from accepting it twice within minutes, `ping` is the user whom it pings."""

    card: Card
    picture: Picture | None
    nonce: str
    ping: str = ""
    reply_to: str = ""


def lives(where: Where, now: float) -> bool:
    """Return whether the interaction's token may still be used."""
    return bool(where.get("token")) and now < float(where.get("token_until") or 0)


def bucket(where: Where, now: float) -> str:
    """Return the rate-limit bucket of an edit here."""
    return token_bucket(where["token"]) if lives(where, now) else f"channel:{where.get('channel', '')}"


def token_bucket(token: str) -> str:
    """Return the bucket of an interaction's token, by a name that is no secret."""
    return f"token:{hashlib.sha256(token.encode()).hexdigest()[:16]}"


def post_bucket(where: Where) -> str:
    """Return the rate-limit bucket of a new message here; a direct conversation goes by its user."""
    return f"post:{where['channel']}" if where.get("channel") else f"direct:{where.get('user', '')}"


class Mail:
    """The courier's access to Discord."""

    def __init__(self, client: DarkroomClient) -> None:
        self._client = client

    async def ready(self) -> None:
        """Return once the client has logged in."""
        await self._client.opened.wait()

    def under_way(self, where: Where) -> bool:
        """Return whether the first response to this destination's request is being sent."""
        return where.get("token") in self._client.answering

    async def edit(
        self, where: Where, card: Card, picture: Picture | None, now: float, *, keep: bool = True,
        within: float = PATIENCE,
    ) -> None:  # fmt: skip
        """Edit the destination's message; without a picture it keeps its own, unless `keep` is False.

        Raises `Later` for an edit that takes longer than `within` seconds, and the errors of `troubles`.
        """
        files = [attached(card, picture)] if picture else (discord.utils.MISSING if keep else [])
        with told():
            await self._ended(asyncio.ensure_future(self._edited(where, card, files, now)), within)

    async def _ended(self, sending: asyncio.Future[None], within: float) -> None:
        """Wait for `within` seconds, then cancel; but not while discord.py waits for the global rate limit to end.

        Cancelled there, discord.py would never send any request again.
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
        """Post a message in the destination's channel; return its id. Raises the errors of `troubles`."""
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
        """Return the channel of the direct conversation with a user. Raises the errors of `troubles`."""
        with told():
            return int((await self._client.http.start_private_message(int(user)))["id"])

    async def find_answer(self, where: Where, job: str, asked: float, now: float) -> int | None:
        """Return the response to the request for `job`, if it was sent before a crash lost its id."""
        with told():
            if lives(where, now) and (found := await self._original(where, job)):
                return found
        with told():
            try:
                return await find(self._channel(where), self._client.user, job, asked, posted=False)
            except (discord.NotFound, discord.Forbidden):
                return None

    async def find_posted(self, where: Where, job: str, now: float) -> int | None:
        """Return the message of its own about `job`, if it was posted before a crash lost its id.

        `where` says since when it may exist. Raises `Gone` if we may not look and Discord may have forgotten the nonce:
        no message is better than two.
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
        except discord.RateLimited as error:  # from discord.py itself, without Discord's code
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
