"""`/queue` and `/cancel`: what runs and waits, why, and how to cancel it.

`/info`: a member's limits and usage, the queue and the workers; or the details of one job.
"""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from discord import app_commands
from discord.app_commands import Range

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import NO_PROMPT, render_details
from bot.discord.declarations import declare
from bot.discord.job_choice import ALL_JOBS, MAX_CHOICE_CHARS, recent_jobs_autocomplete, suggest_open_jobs
from bot.discord.responses import member_of, reply_on_error, require_permission, send_ephemeral, with_channel_privacy
from bot.domain import texts
from bot.domain.errors import UserError
from bot.domain.feature import SideWork
from bot.domain.texts import escape_discord
from bot.policy.rules import ALL
from bot.policy.rules.explanations import format_for_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bot.discord.client import Interaction
    from bot.domain.dto import JobView
    from bot.jobs.quota import QuotaReport
    from bot.services import Services


@app_commands.command(
    description="Who is before you, and why", extras=declare("queue", help="who is before you, and why")
)
async def queue(interaction: Interaction) -> None:
    async with reply_on_error(interaction):
        member = member_of(interaction)
        queue_views = await interaction.client.services.job_views.load_queue(
            member.guild
        )  # only this server's jobs: no server sees another's prompts
        views = [with_channel_privacy(view, member) for view in queue_views]
        has_own_jobs = any(view.member_id == member.id for view in views)
        hint = f"-# {interaction.client.mention_command('cancel')} cancels one of yours." if has_own_jobs else ""
        await send_ephemeral(interaction, job_cards.render_queue(views, time.time(), hint, member.id))


@app_commands.command(
    description="Cancel one of your jobs, or all of them", extras=declare("cancel", help="cancel a job")
)
@app_commands.describe(job="Choose one, or all; a link, an id or a seed works too")
async def cancel(interaction: Interaction, job: Range[str, 1, MAX_CHOICE_CHARS]) -> None:
    async with reply_on_error(interaction):
        if job.strip().casefold() == ALL_JOBS:
            await send_ephemeral(interaction, await _cancel_all(interaction))
            return
        view = await interaction.client.services.history.find_job(job, member_of(interaction))
        member = await require_permission(interaction, "cancel", view)
        text = await interaction.client.services.job_control.cancel(view.id, member)
        is_own = view.member_id == member.id
        is_hidden = with_channel_privacy(view, member).is_private and not is_own
        prompt = "A private job" if is_hidden else texts.escape_discord(view.prompt or NO_PROMPT, 200)
        await send_ephemeral(interaction, f"**{prompt}**\n{text}")


cancel.autocomplete("job")(suggest_open_jobs)


async def _cancel_all(interaction: Interaction) -> str:
    """Cancel every open job of the member, and what else is done for them, wherever they asked for it."""
    member = member_of(interaction)
    services = interaction.client.services
    views = await interaction.client.services.history.list_open(member.id)
    cancelled = list(filter(None, (work.cancel(member.id) for work in services.list_all(SideWork))))
    if not views and cancelled:
        return " ".join(cancelled)
    if not views:
        raise UserError("Nothing of yours runs or waits.", 404)
    started_count = 0
    for view in views:
        await services.job_control.cancel(view.id, member)
        started_count += view.started is not None
    tail = (
        f" {started_count} had started: only the steps they ran are charged."
        if started_count
        else " They cost you nothing."
    )
    return " ".join((f"{texts.format_job_count(len(views))} cancelled.{tail}", *cancelled))


MAX_LISTED = 8  # names of devices or models


@app_commands.command(
    name="info",
    description="Your limits and what is left of them, the queue and the workers; or one job",
    extras=declare("info", help="your limits"),
)
@app_commands.describe(job="All about this one; a link, an id or a seed works too")
async def show_info(interaction: Interaction, job: Range[str, 1, 300] | None = None) -> None:
    async with reply_on_error(interaction):
        if job is not None:
            await show_details(
                interaction, await interaction.client.services.history.find_job(job, member_of(interaction))
            )
            return
        await send_ephemeral(interaction, await _render_overview(interaction))


show_info.autocomplete("job")(recent_jobs_autocomplete(lambda _: True))


async def show_details(interaction: Interaction, view: JobView) -> None:
    """Show all about one job, if the member may see it."""
    await require_permission(interaction, "details", view)
    await send_ephemeral(interaction, render_details(view, time.time()))


async def _render_overview(interaction: Interaction) -> str:
    services = interaction.client.services
    member = member_of(interaction)
    now = time.time()
    limits = render_limits(await services.rule_admin.report_quotas(member), now)
    queue = await services.job_views.load_queue(member.guild)
    foot = f"-# Darkroom {await asyncio.to_thread(_read_version)}"
    return "\n".join(["**Your limits here**", *limits, *_queue_lines(queue), *_worker_lines(services), foot])


def render_limits(quota: QuotaReport, now: float) -> list[str]:
    """Return a member's limits here, one a line: the usage, and when some of it frees."""
    rules = quota.effective_rules
    lines = [f"• {line.sentence(now)}" for line in quota.lines]
    if rules.closed:
        lines.insert(0, f"⚠️ Closed for new pictures: {escape_discord(rules.closed, 400)}")
    if rules.blocked:
        lines.insert(0, "⚠️ You are blocked here.")
    size = format_for_sentence("pixels", rules.pixels).replace("no limit", "of any size")
    lines.append(f"• One job: at most {rules.steps} steps, {rules.count} pictures, {size}")
    for name in ("models", "samplers", "controls", "references", "speeds", "commands"):
        if getattr(rules, name) != ALL:
            lines.append(f"• {name.capitalize()}: {escape_discord(', '.join(getattr(rules, name)) or 'none', 200)}")
    if rules.results != "choice":
        lines.append(f"• Results are {rules.results} here")
    if rules.check:
        lines.append("• Pictures are shown after the picture check passed them")
    return lines


def _queue_lines(queue: Sequence[JobView]) -> list[str]:
    waiting_count = sum(view.state == "queued" for view in queue)
    return ["**Queue here**", f"• {len(queue) - waiting_count} running, {waiting_count} waiting"]


def _worker_lines(services: Services) -> list[str]:
    """Return the workers, their devices and the models, as short lines."""
    workers = services.live_workers()
    if not workers:
        return [f"**Workers**\n• {services.job_views.startup_notice() or texts.NO_WORKER}"]
    devices = _join_names(presence.device for presence in workers.values())
    models = [model for presence in workers.values() for model in presence.models]
    loaded_names = dict.fromkeys(model.name for model in models if model.loaded)
    other_names = _join_names(model.name for model in models if model.name not in loaded_names)
    lines = [
        "**Workers**",
        f"• {len(workers)} online: {devices}",
        f"• Models: {_join_names(loaded_names) or 'none in memory'}",
    ]
    return [*lines, f"• Loaded on demand: {other_names}"] if other_names else lines


def _join_names(names: Iterable[str]) -> str:
    """Join each name once, as many as a few lines hold."""
    unique_names = list(dict.fromkeys(names))
    more = f" and {len(unique_names) - MAX_LISTED} more" if len(unique_names) > MAX_LISTED else ""
    return ", ".join(escape_discord(name, 40) for name in unique_names[:MAX_LISTED]) + more


def _read_version() -> str:
    try:
        return version("darkroom-bot")
    except PackageNotFoundError:
        return "unreleased"
