"""What the last word about a job says beside the finished card: to whom, why here, and where it stands. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bot.chat.called import called
from bot.chat.presenter import CONTENT, Card
from bot.sentences import quoted
from bot.views import View

LONG = 60.0  # seconds of a job from which its end is told by a new message, where no rule says another


def link(where: Mapping[str, str]) -> str:
    """The address of a message; empty where it is not known."""
    if not where.get("message"):
        return ""
    return f"https://discord.com/channels/{where.get('guild') or '@me'}/{where['channel']}/{where['message']}"


def notice(card: Card, user: str) -> Card:
    """The finished card in a new message that tells the author, by their Discord id."""
    return replace(card, content=_fit([f"<@{user}>"], card.content, []))


def collapsed(view: View, at: str) -> Card:
    """What is left of the message that showed the progress: one line, and a link to the notice at the address `at`."""
    mark, said = ("✅", "Done") if view.state == "finished" else ("❌", "It failed")
    told = f"[{said}]({at})" if at else said
    return Card(f"{mark} **{quoted(called(view.prompt), 200)}** · {quoted(view.member_name, 64)} · {told}")


def elsewhere(card: Card, reason: str) -> Card:
    """The finished card in a direct message, with why it comes here; without a reason it was wished for."""
    if not reason:
        return card
    return replace(card, content=_fit([], card.content, [f"-# {quoted(reason, 300)} So it comes to you."]))


def linked(card: Card, address: str) -> Card:
    """The finished card of pictures that are too large for Discord, with where they can be looked at."""
    return replace(card, content=_fit([], card.content, [f"-# Full size: {address}"]))


def _fit(before: list[str], content: str, after: list[str]) -> str:
    """All of what is added, and as many whole lines of the card as there is room for."""
    lines = content.split("\n")
    while len(lines) > 1 and len("\n".join([*before, *lines, *after])) > CONTENT:
        lines.pop()
    return "\n".join([*before, *lines, *after])[:CONTENT]
