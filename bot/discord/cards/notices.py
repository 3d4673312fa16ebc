"""Texts around the final card of a job: whom it pings, why it is sent here, where the job is shown. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bot.discord.cards.job_cards import MAX_CONTENT, Card, job_title
from bot.domain.dto import JobView
from bot.domain.texts import escape_discord

LONG_JOB_SECONDS = 60.0  # seconds: the end of a longer job is a new message, if no rule sets another limit


def message_link(target: Mapping[str, str]) -> str:
    """Return the address of a message; empty if its id is unknown."""
    if not target.get("message"):
        return ""
    return f"https://discord.com/channels/{target.get('guild') or '@me'}/{target['channel']}/{target['message']}"


def render_notice(card: Card, user_id: str) -> Card:
    """Return the finished card as a new message that pings the author, by their Discord id."""
    return replace(card, content=_fit_lines([f"<@{user_id}>"], card.content, []))


def render_collapsed(view: JobView, address: str) -> Card:
    """Return the one line that replaces the progress message, with a link to the notice at `address`."""
    emoji, text = ("✅", "Done") if view.state == "finished" else ("❌", "It failed")
    status = f"[{text}]({address})" if address else text
    return Card(
        f"{emoji} **{escape_discord(job_title(view.prompt), 200)}** · {escape_discord(view.member_name, 64)} · {status}"
    )


def render_direct(card: Card, reason: str) -> Card:
    """Return the finished card for a direct message, with the reason; without one, the author prefers them."""
    if not reason:
        return card
    return replace(
        card, content=_fit_lines([], card.content, [f"-# {escape_discord(reason, 300)} So it comes to you."])
    )


def with_full_size_link(card: Card, address: str) -> Card:
    """Return the finished card with the web address of pictures that are too large for Discord."""
    return replace(card, content=_fit_lines([], card.content, [f"-# Full size: {address}"]))


def _fit_lines(before: list[str], content: str, after: list[str]) -> str:
    """Join all added lines and as many whole lines of the card as fit."""
    lines = content.split("\n")
    while len(lines) > 1 and len("\n".join([*before, *lines, *after])) > MAX_CONTENT:
        lines.pop()
    return "\n".join([*before, *lines, *after])[:MAX_CONTENT]
