"""From an interaction to its first response: who asks, what they and the bot may do here, and what is shown.

The first response goes out within Discord's three seconds: a card for each job, or a refusal. The job service records
the job before; then its message id is recorded. If that fails or comes late, the courier finds the message by itself.

The interaction's token edits a response for fifteen minutes, whatever the bot's permissions are; only its picture needs
one. Later edits, and every new message, need the bot's own permissions. Slow mode does not limit bots.

Jobs of channels that a member cannot see count as private ones for them. A public thread counts as its channel. Jobs of
a private thread are for those who act inside it: Discord tells the bot no members of a thread. Nobody knows who saw a
deleted channel: its jobs are for admins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from logging import Logger
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import discord

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import LONG_JOB_SECONDS, message_link
from bot.domain.dto import AcceptedJob, Destination, Member
from bot.domain.errors import UserError
from bot.domain.texts import format_duration
from bot.jobs.init_images import RemoteFile
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES
from bot.policy.limits import too_often
from bot.policy.permissions import PRIVATE_JOB, Action, forbidden_reason, job_ref

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView

log = logging.getLogger(__name__)
JobSubmitter = Callable[[Member, Destination], Awaitable[Sequence[AcceptedJob]]]
NO_MENTIONS = discord.AllowedMentions.none()
DEFER_AFTER = 1.5  # seconds until we defer the response: Discord waits three
RULES_TIMEOUT = 0.7  # seconds to read preference and rules before we defer
TOKEN_LIFETIME = 14 * 60.0  # seconds that we use a token; Discord accepts it for fifteen minutes
INTERNAL_ERROR = "Something broke on our side. It is logged; please try again."


def member_of(interaction: Interaction) -> Member:
    """Return the member who triggered the interaction, with their permissions here. A direct conversation has no
    moderators.
    """
    user = interaction.user
    guild = interaction.guild
    channel = interaction.channel
    member_permissions = guild_permissions(user)
    return Member(
        f"discord:{user.id}",
        user.display_name,
        guild_of(interaction),
        is_moderator=member_permissions.manage_messages,
        is_admin=member_permissions.manage_guild,
        is_owner=guild is not None and guild.owner_id == user.id,
        is_operator=user.id in interaction.client.operator_ids,
        roles=tuple(str(role.id) for role in user.roles) if isinstance(user, discord.Member) else (),
        channel=str(getattr(channel, "parent_id", None) or interaction.channel_id or ""),
        thread=private_thread_of(channel),
        age_restricted=_is_age_restricted(channel),
        can_see=partial(can_see_channel, user),
    )


def _is_age_restricted(channel: object) -> bool:
    """Return whether the channel, or a thread's parent, is age-restricted."""
    is_nsfw = getattr(channel, "is_nsfw", None)  # a direct conversation has no such method
    return is_nsfw is not None and bool(is_nsfw())


def guild_of(interaction: Interaction) -> str:
    """Return the guild's id. Each direct conversation counts as a guild."""
    return f"discord:{interaction.guild_id}" if interaction.guild_id else f"discord:dm:{interaction.user.id}"


def destination_of(interaction: Interaction, now: float) -> Destination:
    """Return the destination of the response, with the token that edits it."""
    return Destination(
        "discord",
        {
            "guild": str(interaction.guild_id or ""),
            "channel": str(interaction.channel_id or ""),
            "user": str(interaction.user.id),
            "application": str(interaction.application_id),
            "token": interaction.token,
            "token_until": str(now + TOKEN_LIFETIME),
            "limit": str(interaction.filesize_limit),
        },
    )


async def respond_with_jobs(interaction: Interaction, submit: JobSubmitter, *, is_repeat: bool = False) -> None:
    """Run `submit` and send a card for each job; with `is_repeat` (a double click) link to the first job instead.

    Until this returns, the courier does not treat a missing message as lost, however long Discord takes.
    """
    pending_tokens = interaction.client.pending_tokens
    pending_tokens.add(interaction.token)
    try:
        await _respond_with_jobs(interaction, submit, is_repeat)
    finally:
        pending_tokens.discard(interaction.token)


async def _respond_with_jobs(interaction: Interaction, submit: JobSubmitter, is_repeat: bool) -> None:
    try:
        check_can_attach(interaction)
        submission = submit(member_of(interaction), destination_of(interaction, time.time()))
        accepted_jobs, deferred_ephemeral = await _await_or_defer(interaction, submission)
    except UserError as error:
        await send_refusal(interaction, error.sentence)
        return
    if is_repeat:
        address = await _message_address(interaction, accepted_jobs[0].job)
        await send_ephemeral(interaction, job_cards.render_duplicate(address))
        return
    for number, accepted_job in enumerate(accepted_jobs):
        try:
            message = await _send_card(interaction, accepted_job, deferred_ephemeral, is_first=number == 0)
            await interaction.client.services.deliveries.update_address(accepted_job.job, message=str(message))
        except Exception as error:  # the job is admitted anyway, and the courier finds or posts its message
            is_discord_error = isinstance(error, discord.HTTPException)
            text = "job %s: its answer was not sent or not recorded: %s"
            log.warning(text, accepted_job.job, error, exc_info=not is_discord_error)
    await _warn_of_permissions(interaction, accepted_jobs[-1])


async def _await_or_defer(
    interaction: Interaction, submission: Awaitable[Sequence[AcceptedJob]]
) -> tuple[Sequence[AcceptedJob], bool | None]:
    """Return the jobs. The second value is None, or whether the response had to be deferred as ephemeral."""
    task = asyncio.ensure_future(submission)
    done, _ = await asyncio.wait({task}, timeout=DEFER_AFTER)
    deferred_ephemeral: bool | None = None
    if not done:
        deferred_ephemeral = await _is_likely_private(interaction)
        await interaction.response.defer(thinking=True, ephemeral=deferred_ephemeral)
    return await task, deferred_ephemeral


async def _is_likely_private(interaction: Interaction) -> bool:
    """Guess from preference and rules whether the results are private, as far as they load in time.

    In the end, the jobs themselves decide.
    """
    services = interaction.client.services
    member = member_of(interaction)
    try:
        async with asyncio.timeout(RULES_TIMEOUT):
            results = (await services.rule_admin.effective_rules(member)).results
            return results == "private" or (
                results == "choice" and (await services.preferences.load_preference(member.id)).results == "private"
            )
    except (TimeoutError, ConnectionError):
        return False


async def _send_card(
    interaction: Interaction, accepted_job: AcceptedJob, deferred_ephemeral: bool | None, *, is_first: bool
) -> int:
    """Send the card of `accepted_job`, ephemeral if the job is private. Return its message's id."""
    card = job_cards.render_accepted(accepted_job, interaction.user.display_name, time.time())
    view = interaction.client.build_view(card) or discord.utils.MISSING
    if is_first and deferred_ephemeral is None:
        response = await interaction.response.send_message(
            card.content, view=view, ephemeral=accepted_job.is_private, allowed_mentions=NO_MENTIONS
        )
        return response.message_id or (await interaction.original_response()).id
    if is_first and deferred_ephemeral == accepted_job.is_private:
        message = await interaction.edit_original_response(
            content=card.content, view=view, allowed_mentions=NO_MENTIONS
        )
        return message.id
    if is_first:  # deferred with the wrong visibility, which cannot change: another message replaces it
        await interaction.edit_original_response(content="…", allowed_mentions=NO_MENTIONS)
    message = await interaction.followup.send(
        card.content, view=view, ephemeral=accepted_job.is_private, allowed_mentions=NO_MENTIONS, wait=True
    )
    if is_first:
        await interaction.delete_original_response()
    return message.id


async def _message_address(interaction: Interaction, job: str) -> str:
    return message_link((await interaction.client.services.deliveries.answer_destination(job)).address)


async def _warn_of_permissions(interaction: Interaction, last_job: AcceptedJob) -> None:
    """Tell the member what the bot's missing permissions will prevent here later."""
    text = permission_warning(interaction, last_job.eta, TOKEN_LIFETIME)
    if not text:
        return
    try:
        await interaction.followup.send(f"-# {text}", ephemeral=True, allowed_mentions=NO_MENTIONS)
    except discord.HTTPException as error:
        log.warning("a member was not told of missing permissions: %s", error)


async def send_refusal(interaction: Interaction, sentence: str) -> None:
    """Show the refusal to the member only."""
    await send_ephemeral(interaction, job_cards.render_refusal(sentence))


async def send_error(interaction: Interaction) -> None:
    """Apologise after an error that is already logged, so that the member does not wait at a spinner."""
    try:
        await send_ephemeral(interaction, INTERNAL_ERROR)
    except discord.HTTPException as error:
        log.warning("an apology could not be sent: %s", error)


async def send_ephemeral(interaction: Interaction, text: str) -> None:
    """Send a sentence to the member only, even if the response was deferred as public."""
    if not interaction.response.is_done():
        await interaction.response.send_message(text, ephemeral=True, allowed_mentions=NO_MENTIONS)
        return
    # Discord makes the next message ephemeral only after an edit of the deferred one.
    await interaction.edit_original_response(content="…", allowed_mentions=NO_MENTIONS)
    await interaction.followup.send(text, ephemeral=True, allowed_mentions=NO_MENTIONS)
    await interaction.delete_original_response()


PERMISSIONS_AFTER_TOKEN = {  # needed once the token has expired or its message is gone; the values are Discord's names
    "view_channel": "View Channel",
    "send_messages": "Send Messages",
    "read_message_history": "Read Message History",
}
SEND_IN_THREADS = "Send Messages in Threads"  # replaces Send Messages


def check_can_attach(interaction: Interaction) -> None:
    """Raise `UserError` (403) if the bot may not attach pictures here."""
    if interaction.guild_id is not None and not interaction.app_permissions.attach_files:
        raise UserError("I may not show pictures here: I need the permission Attach Files in this channel.", 403)


def permission_warning(interaction: Interaction, eta: float | None, token_seconds: float) -> str:
    """Return what will not work here for a job that ends in `eta` seconds (None: unknown); empty if all will.

    `token_seconds`: for how many seconds the response can be edited without any permission.
    """
    missing_names = missing_permissions(interaction)
    if not missing_names or (eta is not None and eta < LONG_JOB_SECONDS):
        return ""
    *first_names, last_name = missing_names
    names = f"{', '.join(first_names)} and {last_name}" if first_names else last_name
    return (
        f"I lack {names} here: I cannot ping you when it is done, and a job that takes longer than "
        f"{format_duration(token_seconds)} comes to you as a direct message instead."
    )


def missing_permissions(interaction: Interaction) -> list[str]:
    """Return the permissions that the bot lacks here for later, as Discord names them."""
    if interaction.guild_id is None:
        return []
    app_permissions = interaction.app_permissions
    channel = interaction.channel
    in_thread = isinstance(channel, discord.Thread)
    required_permissions = dict(PERMISSIONS_AFTER_TOKEN)
    if in_thread:
        del required_permissions["send_messages"]
        required_permissions["send_messages_in_threads"] = SEND_IN_THREADS
        if channel.locked:
            required_permissions["manage_threads"] = "Manage Threads (this one is locked)"
    return [title for name, title in required_permissions.items() if not getattr(app_permissions, name)]


def guild_permissions(user: discord.abc.User) -> discord.Permissions:
    """Return a member's permissions in their server; none in direct conversations, or if its roles are not cached."""
    if not isinstance(user, discord.Member) or user.guild.get_role(user.guild.id) is None:
        return discord.Permissions.none()
    return user.guild_permissions


CHANNEL_HIDDEN = "That job belongs to a channel that you cannot see."
THREAD_HIDDEN = "That job belongs to a private thread: only its members may use it, and only there."


def can_see_channel(user: discord.abc.User, channel: str) -> bool:
    """Return whether a member can view a channel of their server, as far as its channels are cached."""
    if not isinstance(user, discord.Member) or not channel.isdecimal():
        return True  # a direct conversation, or a job whose interaction named no channel
    guild_channel = user.guild.get_channel_or_thread(int(channel))
    try:
        return (
            user.guild_permissions.administrator
            if guild_channel is None
            else guild_channel.permissions_for(user).view_channel
        )
    except discord.ClientException:  # a thread whose channel is not cached
        return False


def private_thread_of(channel: object) -> str:
    """Return the id of a private thread; empty for every other channel."""
    return str(channel.id) if isinstance(channel, discord.Thread) and channel.is_private() else ""


def with_channel_privacy(view: JobView, member: Member) -> JobView:
    """Return the job as this member may see it: private if they cannot see its channel or thread, unless it is theirs.

    Another check refuses jobs of other servers.
    """
    if (
        view.is_private
        or view.member_id == member.id
        or view.guild != member.guild
        or member.can_see_place(view.channel, view.thread)
    ):
        return view
    return replace(view, is_private=True)


def refusal_reason(reason: str, view: JobView | None) -> str:
    """Return the sentence for a refusal about a job that `with_channel_privacy` may have made private."""
    if reason != PRIVATE_JOB or view is None or view.is_private:
        return reason
    return THREAD_HIDDEN if view.thread else CHANNEL_HIDDEN


CHARGED = "charged"  # in an interaction's extras: its member's rate has paid for it
# They make jobs, or cost as much: the services check the rules.
SELF_CHECKED_ACTIONS: tuple[Action, ...] = ("imagine", "blend", "describe", "reproduce")


def check_rate(interaction: Interaction, action: Action) -> None:
    """Charge the interaction to its member's rate, once. Raises `UserError` (429)."""
    if interaction.extras.get(CHARGED):
        return
    if wait_seconds := interaction.client.token_buckets.take(f"discord:{interaction.user.id}", action):
        raise too_often(wait_seconds)
    interaction.extras[CHARGED] = True


async def require_permission(interaction: Interaction, action: Action, view: JobView | None = None) -> Member:
    """Return the member if they may do this (to this job), so soon. Raises `UserError` (403 or 429)."""
    check_rate(interaction, action)
    member = member_of(interaction)
    subject = None if view is None else job_ref(with_channel_privacy(view, member))
    if reason := forbidden_reason(action, member, subject, in_direct_message=interaction.guild_id is None):
        raise UserError(refusal_reason(reason, view), 403)
    if action not in SELF_CHECKED_ACTIONS:
        await interaction.client.services.rule_admin.check_command(member, action)
    return member


@asynccontextmanager
async def reply_on_error(interaction: Interaction) -> AsyncGenerator[None]:
    """Catch a `UserError` from the body and show it to the member only."""
    try:
        yield
    except UserError as error:
        await send_refusal(interaction, error.sentence)


@asynccontextmanager
async def report_errors(interaction: Interaction, log: Logger, message: str, *args: object) -> AsyncGenerator[None]:
    """As `reply_on_error`; also log any other error of the body and apologise: discord.py would not respond."""
    try:
        async with reply_on_error(interaction):
            yield
    except Exception:
        log.exception(message, *args)
        await send_error(interaction)


MAX_FILE_BYTES = MAX_UPLOAD_BYTES  # bytes of one picture
DOWNLOAD_FAILED = "Discord did not let me download {}. Please send it again."


class DiscordFile(Protocol):
    """Discord's description of a file: size in bytes and address."""

    @property
    def url(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def filename(self) -> str: ...


@dataclass(frozen=True)
class UploadedFile:
    """A file from a submitted form."""

    url: str
    size: int
    filename: str


def to_remote_file(file: DiscordFile) -> RemoteFile:
    """Return a reference that the services fetch later. Raises `UserError` (413) for a file that is too large."""
    if file.size > MAX_FILE_BYTES:
        text = f"{file.filename[:60]} has {file.size / 2**20:.1f} MiB, and the limit is {MAX_FILE_BYTES // 2**20} MiB."
        raise UserError(text, 413)
    ascii_url = "".join(letter if letter.isascii() else quote(letter) for letter in file.url)  # as HTTP sends it
    return RemoteFile(ascii_url, file.size, DOWNLOAD_FAILED.format(file.filename[:60] or "the file"))
