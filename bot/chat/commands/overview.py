"""`/info`: a member's limits and usage, the queue and the workers; or the details of one job."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot import sentences
from bot.chat.answer import member_of, say
from bot.chat.details import details
from bot.chat.permitted import permit, refusing
from bot.chat.which import recent_jobs
from bot.rules import ALL
from bot.rules.telling import shown
from bot.sentences import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bot.chat.client import DarkroomClient
    from bot.desk.studio import Studio
    from bot.desk.usage import Allowance
    from bot.views import View

    Interaction = discord.Interaction[DarkroomClient]


LISTED = 8  # names of devices or models


@app_commands.command(
    name="info", description="Your limits and what is left of them, the queue and the workers; or one job"
)
@app_commands.describe(job="All about this one; a link, an id or a seed works too")
async def show_info(interaction: discord.Interaction[DarkroomClient], job: Range[str, 1, 300] | None = None) -> None:
    async with refusing(interaction):
        if job is not None:
            await about(interaction, await interaction.client.desk.shelf.meant(job, member_of(interaction)))
            return
        await say(interaction, await _overview(interaction))


@show_info.autocomplete("job")
async def jobs(interaction: discord.Interaction[DarkroomClient], typed: str) -> list[app_commands.Choice[str]]:
    return await recent_jobs(lambda _: True)(interaction, typed)


async def about(interaction: Interaction, view: View) -> None:
    """Show all about one job, if the member may see it."""
    await permit(interaction, "details", view)
    await say(interaction, details(view, time.time()))


async def _overview(interaction: Interaction) -> str:
    desk, member, now = interaction.client.desk, member_of(interaction), time.time()
    limits = allowed(await desk.administration.allowance(member), now)
    queue = await desk.studio.queue(member.guild)
    foot = f"-# Darkroom {await asyncio.to_thread(_version)}"
    return "\n".join(["**Your limits here**", *limits, *_now(queue), *_workers(desk.studio), foot])


def allowed(given: Allowance, now: float) -> list[str]:
    """Return a member's limits here, one a line: the usage, and when some of it frees."""
    terms = given.terms
    lines = [f"• {line.sentence(now)}" for line in given.lines]
    if terms.closed:
        lines.insert(0, f"⚠️ Closed for new pictures: {quoted(terms.closed, 400)}")
    if terms.blocked:
        lines.insert(0, "⚠️ You are blocked here.")
    size = shown("pixels", terms.pixels).replace("no limit", "of any size")
    lines.append(f"• One job: at most {terms.steps} steps, {terms.count} pictures, {size}")
    for name in ("models", "samplers", "speeds", "commands"):
        if getattr(terms, name) != ALL:
            lines.append(f"• {name.capitalize()}: {quoted(', '.join(getattr(terms, name)) or 'none', 200)}")
    if terms.results != "choice":
        lines.append(f"• Results are {terms.results} here")
    if terms.check:
        lines.append("• Pictures are shown after the picture check passed them")
    return lines


def _now(queue: Sequence[View]) -> list[str]:
    waits = sum(view.state == "queued" for view in queue)
    return [
        "**Queue here**",
        f"• {len(queue) - waits} running, {waits} waiting",
    ]


def _workers(studio: Studio) -> list[str]:
    """Return the workers, their devices and the models, as short lines."""
    workers = studio.workers()
    if not workers:
        return [f"**Workers**\n• {studio.starting() or sentences.NO_WORKER}"]
    devices = _listed(one.device for one in workers.values())
    known = [warm for one in workers.values() for warm in one.models]
    ready = dict.fromkeys(warm.name for warm in known if warm.loaded)
    others = _listed(warm.name for warm in known if warm.name not in ready)
    lines = ["**Workers**", f"• {len(workers)} online: {devices}", f"• Models: {_listed(ready) or 'none in memory'}"]
    return [*lines, f"• Loaded on demand: {others}"] if others else lines


def _listed(names: Iterable[str]) -> str:
    """Join each name once, as many as a few lines hold."""
    once = list(dict.fromkeys(names))
    more = f" and {len(once) - LISTED} more" if len(once) > LISTED else ""
    return ", ".join(quoted(name, 40) for name in once[:LISTED]) + more


def _version() -> str:
    try:
        return version("darkroom-bot")
    except PackageNotFoundError:
        return "unreleased"
