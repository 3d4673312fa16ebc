"""The layout of a `/mine` page: a title, and a few short lines and a thumbnail for each job. Sends nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from discord import ui

from bot import sentences
from bot.chat.called import called
from bot.chat.details import SIGNS, STATES
from bot.chat.notices import link
from bot.sentences import quoted, shortened
from bot.states import over

if TYPE_CHECKING:
    from bot.desk.shelf import Kept, Page, Which
    from bot.views import Place

FILTERS: Mapping[Which, str] = MappingProxyType(
    {"all": "All", "favourites": "Favourites", "waiting": "Waiting", "unshown": "Not shown"}
)
NOTHING: Mapping[Which, str] = MappingProxyType(
    {
        "all": "You have made nothing yet.",
        "favourites": "No picture is a favourite of yours yet.",
        "waiting": "Nothing of yours runs or waits.",
        "unshown": "All your pictures were shown where you asked for them.",
    }
)
COLOUR = 0x5B6EE1


class Sheet(ui.LayoutView):
    """One page: a title, a section for each job, and rows that lead to other pages."""

    def __init__(self, page: Page, pictured: Collection[str], ways: Sequence[Sequence[ui.Item[Any]]]) -> None:
        super().__init__(timeout=None)
        box: ui.Container[Sheet] = ui.Container(accent_colour=COLOUR)
        box.add_item(ui.TextDisplay(_title(page)))
        for kept in page.kept:
            box.add_item(ui.Separator())
            box.add_item(_section(kept, kept.view.id in pictured))
        self.add_item(box)
        for way in ways:
            self.add_item(ui.ActionRow(*way))


def _title(page: Page) -> str:
    if not page.total:
        return f"### Yours\n{NOTHING[page.which]}"
    pages = f" · page {page.number} of {page.of}" if page.of > 1 else ""
    return f"### Yours\n-# {FILTERS[page.which]}: {sentences.jobs(page.total)}{pages}"


def _section(kept: Kept, pictured: bool) -> ui.Item[Any]:
    text: ui.TextDisplay[Any] = ui.TextDisplay(describe(kept))
    if not pictured:
        return text
    alt = shortened(kept.view.prompt, 256)
    return ui.Section(text, accessory=ui.Thumbnail(f"attachment://{kept.view.id}.jpg", description=alt))


def describe(kept: Kept) -> str:
    """Return a job in a few short lines: a phone shows some thirty characters beside the picture."""
    view = kept.view
    state = "" if view.state == "finished" else f" {STATES.get(view.state, view.state)}"
    if view.state in ("running", "sent"):
        state += f" {sentences.percent(view.step, view.of)} %"
    facts = [f"{SIGNS[view.state]}{state}", f"<t:{round(view.finished or view.created)}:R>"]
    if view.state == "finished":
        facts = [" ".join(facts)]
    if not kept.reason and (at := _link(kept.place, view.private)):
        facts.append(f"[open]({at})")
    if kept.liked:
        facts.append("★" + " ".join(str(index + 1) for index in kept.liked))
    if view.private:
        facts.append("private")
    lines = [f"**{quoted(called(view.prompt), 140)}**", " · ".join(facts)]
    if view.state == "queued" and view.why:
        lines.append(f"-# {quoted(view.why, 120)}")
    if view.deleted is not None:
        lines.append("-# Its pictures were deleted.")
    elif kept.reason:
        lines.append(f"-# Not shown where you asked: {quoted(kept.reason, 200)}")
    elif over(view.state) and view.state != "finished" and view.reason:
        lines.append(f"-# {quoted(view.reason, 160)}")
    return "\n".join(lines)


def _link(place: Place | None, private: bool) -> str:
    """Return the message's address; empty for a private one in a server, which is ephemeral."""
    if place is None or place.kind != "discord" or (private and place.where.get("guild")):
        return ""
    return link(place.where)
