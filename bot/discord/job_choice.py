"""Choice of a job: autocomplete suggestions, and the job that a message shows.

Suggestions are plain text, as Discord shows them: no markdown, at most a hundred characters.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import discord
from discord.app_commands import Choice

from bot.discord.cards.job_cards import NO_PROMPT
from bot.discord.responses import member_of, with_channel_privacy
from bot.domain import texts
from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.domain.texts import shorten

if TYPE_CHECKING:
    from bot.discord.client import Interaction
    from bot.domain.dto import JobView

# Discord's limits: choices, and characters in one
MAX_CHOICES = 25
MAX_CHOICE_CHARS = 100
MAX_SEARCHED = 75  # jobs searched for the typed text
ALL_JOBS = "all"
JOB_CUSTOM_ID = re.compile(r"^[a-z-]+:([0-9A-HJKMNP-TV-Z]{26})(?::|$)")
NO_JOB = "That message shows no job of mine."


def job_label(view: JobView, author: str = "", *, now: float) -> str:
    """Return a job in one line: its prompt, its state, and its author where `author` is given."""
    tail = " · ".join(part for part in (f"by {shorten(author, 20)}" if author else "", _state_text(view, now)) if part)
    prompt = "A private job" if author and view.is_private else view.prompt or NO_PROMPT
    return f"{shorten(prompt, MAX_CHOICE_CHARS - len(tail) - 3)} · {tail}"


def _state_text(view: JobView, now: float) -> str:
    if view.state == "queued":
        return (
            f"waiting, {texts.format_job_count(view.jobs_ahead)} ahead" if view.jobs_ahead else "waiting, next in line"
        )
    if not is_end(view.state):
        return f"running, step {view.step} of {view.total_steps}"
    ago = texts.format_duration(now - (view.finished or view.created))
    return f"{view.state} {ago} ago" if view.state != "finished" else f"{ago} ago"


def filter_jobs(views: Iterable[JobView], current: str, member_id: str, *, all_label: str = "") -> list[Choice[str]]:
    """Return the jobs whose label contains the typed text; `all_label`: the label of a first choice for all of them."""
    now = time.time()
    query = current.casefold().strip()
    labels = [
        (job_label(view, "" if view.member_id == member_id else view.member_name, now=now), view.id) for view in views
    ]
    matches = [Choice(name=name, value=job) for name, job in labels if query in name.casefold() or query == job]
    all_choice = [Choice(name=all_label, value=ALL_JOBS)] if all_label and query in all_label.casefold() else []
    return [*all_choice, *matches][:MAX_CHOICES]


async def suggest_open_jobs(interaction: Interaction, current: str) -> list[Choice[str]]:
    """Suggest the member's own open jobs, all of them at once, and to moderators those of the whole server."""
    member = member_of(interaction)
    own_jobs = await interaction.client.services.history.list_open(member.id)
    others: Sequence[JobView] = ()
    if member.is_moderator and interaction.guild_id is not None:
        queue = await interaction.client.services.job_views.load_queue(member.guild)
        others = [with_channel_privacy(view, member) for view in queue if view.member_id != member.id]
    all_label = f"All of mine: {texts.format_job_count(len(own_jobs))}" if len(own_jobs) > 1 else ""
    return filter_jobs([*own_jobs, *others], current, member.id, all_label=all_label)


def recent_jobs_autocomplete(accepts: Callable[[JobView], bool]) -> Callable[[Interaction, str], Any]:
    """Return an autocomplete of the member's own jobs and this channel's newest, filtered by `accepts`."""

    async def suggest(interaction: Interaction, current: str) -> list[Choice[str]]:
        member = member_of(interaction)
        jobs = await interaction.client.services.history.list_nearby(member, MAX_SEARCHED)
        return filter_jobs([view for view in jobs if accepts(view)], current, member.id)

    return suggest


async def find_shown_job(interaction: Interaction, message: discord.Message) -> str | None:
    """Return the id of the job that a message of the bot shows: from its buttons, else from the recorded deliveries."""
    bot_user = interaction.client.user
    if bot_user is None or message.author.id != bot_user.id:
        return None
    return _job_in_buttons(message) or await interaction.client.services.deliveries.find_job(str(message.id))


async def require_shown_job(interaction: Interaction, message: discord.Message) -> JobView:
    """Return the job that a message shows. Raises `UserError` (404)."""
    job = await find_shown_job(interaction, message)
    if job is None:
        raise UserError(NO_JOB, 404)
    return await interaction.client.services.job_views.load_view(job)


def _job_in_buttons(message: discord.Message) -> str | None:
    """Return the job id in the first button that has one."""
    matches = (JOB_CUSTOM_ID.match(custom_id) for custom_id in _custom_ids(message.components))
    return next((match[1] for match in matches if match), None)


def _custom_ids(components: Iterable[Any]) -> Iterator[str]:
    """Yield the custom ids in a message, also inside rows, sections and containers."""
    for component in components:
        if custom_id := getattr(component, "custom_id", None):
            yield custom_id
        yield from _custom_ids(getattr(component, "children", ()))
        if accessory := getattr(component, "accessory", None):
            yield from _custom_ids([accessory])
