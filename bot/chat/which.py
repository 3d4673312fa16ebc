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

from bot import sentences
from bot.chat.answer import member_of
from bot.chat.called import WORDLESS
from bot.chat.sight import covered
from bot.refused import Refused
from bot.sentences import shortened
from bot.states import over

if TYPE_CHECKING:
    from bot.chat.client import DarkroomClient
    from bot.views import View

    Interaction = discord.Interaction[DarkroomClient]

OFFERED, CHOICE = 25, 100  # Discord's limits: choices, and characters in one
SEARCHED = 75  # jobs searched for the typed text
ALL = "all"
NAMED = re.compile(r"^[a-z-]+:([0-9A-HJKMNP-TV-Z]{26})(?::|$)")
NO_JOB = "That message shows no job of mine."


def label(view: View, whose: str = "", *, now: float) -> str:
    """Return a job in one line: its prompt, its state, and its author where `whose` is given."""
    tail = " · ".join(part for part in (f"by {shortened(whose, 20)}" if whose else "", _state(view, now)) if part)
    prompt = "A private job" if whose and view.private else view.prompt or WORDLESS
    return f"{shortened(prompt, CHOICE - len(tail) - 3)} · {tail}"


def _state(view: View, now: float) -> str:
    if view.state == "queued":
        return f"waiting, {sentences.jobs(view.ahead)} ahead" if view.ahead else "waiting, next in line"
    if not over(view.state):
        return f"running, step {view.step} of {view.of}"
    ago = sentences.duration(now - (view.finished or view.created))
    return f"{view.state} {ago} ago" if view.state != "finished" else f"{ago} ago"


def offered(views: Iterable[View], typed: str, me: str, *, whole: str = "") -> list[Choice[str]]:
    """Return the jobs whose label contains the typed text; `whole`: the label of a first choice for all of them."""
    now, wanted = time.time(), typed.casefold().strip()
    names = [(label(view, "" if view.member_id == me else view.member_name, now=now), view.id) for view in views]
    fitting = [Choice(name=name, value=job) for name, job in names if wanted in name.casefold() or wanted == job]
    first = [Choice(name=whole, value=ALL)] if whole and wanted in whole.casefold() else []
    return [*first, *fitting][:OFFERED]


async def open_jobs(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """Suggest the member's own open jobs, all of them at once, and to moderators those of the whole server."""
    member = member_of(interaction)
    own = await interaction.client.desk.shelf.open_of(member.id)
    others: Sequence[View] = ()
    if member.moderator and interaction.guild_id is not None:
        found = await interaction.client.studio.queue(member.guild)
        others = [covered(view, interaction.user) for view in found if view.member_id != member.id]
    whole = f"All of mine: {sentences.jobs(len(own))}" if len(own) > 1 else ""
    return offered([*own, *others], typed, member.id, whole=whole)


def recent_jobs(fits: Callable[[View], bool]) -> Callable[[Interaction, str], Any]:
    """Return an autocomplete of the member's own jobs and this channel's newest, filtered by `fits`."""

    async def suggest(interaction: Interaction, typed: str) -> list[Choice[str]]:
        member = member_of(interaction)
        found = await interaction.client.desk.shelf.near(member, SEARCHED)
        return offered([view for view in found if fits(view)], typed, member.id)

    return suggest


async def job_shown(interaction: Interaction, message: discord.Message) -> str | None:
    """Return the job id that a message of ours shows: from its buttons, else from the recorded deliveries."""
    me = interaction.client.user
    if me is None or message.author.id != me.id:
        return None
    return _named(message) or await interaction.client.desk.deliveries.job_at(str(message.id))


async def shown_by(interaction: Interaction, message: discord.Message) -> View:
    """Return the job that a message shows. Raises `Refused` (404)."""
    job = await job_shown(interaction, message)
    if job is None:
        raise Refused(NO_JOB, 404)
    return await interaction.client.studio.view(job)


def _named(message: discord.Message) -> str | None:
    """Return the job id in the first button that has one."""
    matches = (NAMED.match(custom_id) for custom_id in _ids(message.components))
    return next((match[1] for match in matches if match), None)


def _ids(components: Iterable[Any]) -> Iterator[str]:
    """Yield the custom ids in a message, also inside rows, sections and containers."""
    for one in components:
        if custom_id := getattr(one, "custom_id", None):
            yield custom_id
        yield from _ids(getattr(one, "children", ()))
        if accessory := getattr(one, "accessory", None):
            yield from _ids([accessory])
