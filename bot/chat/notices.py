"""Texts around the final card of a job: whom it pings, why it comes here, where the job is shown. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bot.chat.called import called
from bot.chat.presenter import CONTENT, Card
from bot.sentences import quoted
from bot.views import View

LONG = 60.0  # seconds: the end of a longer job is a new message, if no rule sets another limit


def link(where: Mapping[str, str]) -> str:
    """Return the address of a message; empty if its id is unknown."""
    if not where.get("message"):
        return ""
    return f"https://discord.com/channels/{where.get('guild') or '@me'}/{where['channel']}/{where['message']}"


def notice(card: Card, user: str) -> Card:
    """Return the finished card as a new message that pings the author, by their Discord id."""
    return replace(card, content=_fit([f"<@{user}>"], card.content, []))


def collapsed(view: View, at: str) -> Card:
    """Return the one line that replaces the progress message, with a link to the notice at the address `at`."""
    mark, said = ("✅", "Done") if view.state == "finished" else ("❌", "It failed")
    told = f"[{said}]({at})" if at else said
    return Card(f"{mark} **{quoted(called(view.prompt), 200)}** · {quoted(view.member_name, 64)} · {told}")


def elsewhere(card: Card, reason: str) -> Card:
    """Return the finished card for a direct message, with the reason; without one, the author prefers them."""
    if not reason:
        return card
    return replace(card, content=_fit([], card.content, [f"-# {quoted(reason, 300)} So it comes to you."]))


def linked(card: Card, address: str) -> Card:
    """Return the finished card with the web address of pictures that are too large for Discord."""
    return replace(card, content=_fit([], card.content, [f"-# Full size: {address}"]))


def _fit(before: list[str], content: str, after: list[str]) -> str:
    """Join all added lines and as many whole lines of the card as fit."""
    lines = content.split("\n")
    while len(lines) > 1 and len("\n".join([*before, *lines, *after])) > CONTENT:
        lines.pop()
    return "\n".join([*before, *lines, *after])[:CONTENT]
