"""Incidents for moderators: refused words, reports, held pictures, deletions; page by page, closed one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from discord import ui

from bot.chat.answer import link
from bot.chat.settings import cards, parts
from bot.chat.settings.asked import Shown, respond
from bot.incidents import Incident, told
from bot.refused import Refused
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.chat.settings.presses import Press
    from bot.views import Member

PAGE, DEEP, SAID = 5, 500, 400  # on one page, in all, characters of one
WAITING, ALL = "waiting", "all"


async def show(interaction: Interaction, which: str = WAITING, page: int = 0) -> None:
    """Show the incidents that wait for a moderator, or all."""
    await respond(interaction, "settings", lambda member: _listed(interaction, member, which, page))


async def turned(interaction: Interaction, press: Press) -> None:
    """Show another page, or the other list."""
    await show(interaction, ALL if press.parts[:1] == (ALL,) else WAITING, press.number())


async def close(interaction: Interaction, press: Press) -> None:
    """Close an incident; the list stays."""

    async def work(member: Member) -> Shown:
        closed = await interaction.client.desk.moderation.close(press.number(0), member)
        notice = cards.notice(f"✅ No. {closed.number} is closed.")
        which = ALL if press.parts[1:2] == (ALL,) else WAITING
        return await _listed(interaction, member, which, press.number(), notice)

    await respond(interaction, "settings", work)


async def _listed(
    interaction: Interaction, member: Member, which: str, page: int, notice: Sequence[ui.Item] = ()
) -> Shown:
    found = await interaction.client.desk.moderation.incidents(member, DEEP, waiting=which == WAITING)
    pages = max(1, -(-len(found) // PAGE))
    page = max(0, min(page, pages - 1))
    shown = found[page * PAGE : (page + 1) * PAGE]
    links = {one.job: await _link(interaction, one.job) for one in shown if one.job}
    return Shown(view=listed(shown, links, which, page, pages, notice))


async def _link(interaction: Interaction, job: str) -> str:
    """Return where a job is shown; empty if it is shown nowhere any more."""
    try:
        return link((await interaction.client.desk.deliveries.place_of(job)).where)
    except Refused:
        return ""


def listed(
    shown: Sequence[Incident], links: Mapping[str, str], which: str, page: int, pages: int,
    notice: Sequence[ui.Item] = (),
) -> ui.LayoutView:  # fmt: skip
    """Return one page; an incident that waits for a moderator has a button to close it."""
    items: list[ui.Item] = [*notice, parts.text("## Waiting for a moderator" if which == WAITING else "## Incidents")]
    if not shown:
        items.append(parts.text("Nothing waits." if which == WAITING else "Nothing yet."))
    for one in shown:
        said = entry(one, links.get(one.job, ""))
        control = parts.button("Close", "shut", one.number, which, page)
        items.append(parts.beside(said, control) if one.waits else parts.text(said))
    items += parts.pager("incidents", which, page=page, pages=pages)
    other = ("Show all", ALL) if which == WAITING else ("Only what waits", WAITING)
    items.append(parts.row(parts.button(other[0], "incidents", other[1], 0)))
    return parts.layout(*items, colour=cards.BLUE)


def entry(one: Incident, where: str) -> str:
    """Return an incident, when it was, and where the picture is."""
    seen = f" · {where}" if where else ""
    return f"**{one.number}.** {quoted(told(one), SAID)}\n-# <t:{round(one.at)}:R>{seen}"
