"""Moderation settings: refused words and patterns, blocks, the picture check, reports.

A form holds all words at once. A form that is refused or outdated comes back as a file: nothing that somebody typed is
lost.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import discord
from discord import ui

from bot.chat.presenter import refusal
from bot.chat.settings import cards, changing, forms, looking, wording
from bot.chat.settings.asked import Shown, respond
from bot.refused import Refused
from bot.rules import reading
from bot.rules.catalogue import SETTINGS
from bot.rules.rule import Change, Key, Value
from bot.sentences import quoted

if TYPE_CHECKING:
    from bot.chat.settings.asked import Interaction
    from bot.chat.settings.presses import Press
    from bot.views import Member

LISTS = ("words", "patterns")
CHANGED = (
    "Somebody changed these lists while your form was open: nothing was saved, and what you typed is in this file."
)
TOO_LONG = (
    "These lists are too long for a form: take /settings export, edit the file, and send it with /settings import. "
    "Single words go by /moderation words with add or remove."
)


async def edit_words(interaction: Interaction, press: Press | None = None) -> None:
    """Open the form with all words and patterns."""

    async def work(member: Member) -> ui.Modal:
        now = await changing.own(interaction, member)
        words, patterns = (_list(now.get(("guild", "", name))) for name in LISTS)
        if any(len("\n".join(one)) > forms.LONG for one in (words, patterns)):
            raise Refused(TOO_LONG, 413)
        return forms.words(words, patterns, _stamp(now))

    await respond(interaction, "set", work)


async def reword(interaction: Interaction, press: Press) -> None:
    """Apply the submitted form: an error in one list leaves both as they were."""

    async def work(member: Member) -> Shown:
        typed = {name: press.one(name).splitlines() for name in LISTS}
        try:
            if press.parts and press.parts[0] != _stamp(await changing.own(interaction, member)):
                raise Refused(CHANGED)  # a form holds the whole lists: it would remove what was added
            changes = await _reworded(interaction, member, typed)
        except Refused as refused:
            text = "\n".join(line for name in LISTS for line in (f"# {name}", *typed[name]))
            kept = discord.File(io.BytesIO(text.encode()), filename="what-you-typed.txt")
            return Shown(content=refusal(refused.sentence), files=(kept,), fresh=True)
        return Shown(view=cards.done("\n".join(map(wording.changed, changes)) or "Nothing changed."), fresh=True)

    await respond(interaction, "set", work)


async def _reworded(interaction: Interaction, member: Member, typed: Mapping[str, Sequence[str]]) -> list[Change]:
    now = await changing.own(interaction, member)
    wanted = {name: [line.strip() for line in lines if line.strip()] for name, lines in typed.items()}
    for name, lines in wanted.items():
        if lines:
            reading.read_list(SETTINGS[name], lines)  # both are checked before either is changed
    house, changes = looking.administration(interaction), list[Change]()
    for name, lines in wanted.items():
        if set(lines) == set(_list(now.get(("guild", "", name)))):
            continue
        if lines:
            changes.append(await house.set(member, "guild", "", name, lines))
        else:
            changes.append(await house.unset(member, "guild", "", name))
    return changes


async def change_words(interaction: Interaction, add: str, remove: str) -> None:
    """Add and remove single words, by command; the rest stays."""

    async def work(member: Member) -> Shown:
        now = await changing.own(interaction, member)
        words = _list(now.get(("guild", "", "words")))
        new, gone = _parts(add), {part.casefold() for part in _parts(remove)}
        missing = gone - {word.casefold() for word in words}
        if missing:
            raise Refused(f"These are not on the list: {', '.join(sorted(missing))}.")
        left = [word for word in words if word.casefold() not in gone] + new
        changes = await _reworded(interaction, member, {"words": left})
        return Shown(view=cards.done("\n".join(map(wording.changed, changes)) or "Nothing changed: they are listed."))

    await respond(interaction, "set", work)


async def block(interaction: Interaction, user: discord.abc.User, reason: str) -> None:
    """Block a member; the list of incidents says who did it and why."""

    async def work(member: Member) -> Shown:
        who = f"discord:{user.id}"
        if who == member.id:
            raise Refused("That is you: ask another admin, if you mean it.")
        if (await changing.own(interaction, member)).get(("user", who, "blocked")):
            raise Refused("They are blocked already.")
        change = await looking.administration(interaction).set(member, "user", who, "blocked", "on")
        await interaction.client.desk.moderation.barred(f"{user.display_name} ({user.id})", member, reason)
        why = f"\n-# Reason: {quoted(reason, 200)}" if reason else ""
        said = f"⛔ <@{user.id}> is blocked: they can make nothing here. What runs is not stopped.{why}"
        return Shown(view=cards.done(said, undo=change.number))

    await respond(interaction, "set", work)


async def unblock(interaction: Interaction, user: discord.abc.User) -> None:
    """Unblock a member; say so if one of their roles is still blocked."""

    async def work(member: Member) -> Shown:
        now, who = await changing.own(interaction, member), f"discord:{user.id}"
        held = user.roles if isinstance(user, discord.Member) else ()
        roles = [f"“{role.name}”" for role in held if now.get(("role", str(role.id), "blocked"))]
        still = f"their role {', '.join(roles)} is, until /settings unset takes that away." if roles else ""
        if not now.get(("user", who, "blocked")):
            raise Refused(f"They are not blocked themselves; {still}" if still else "They are not blocked here.")
        change = await looking.administration(interaction).unset(member, "user", who, "blocked")
        said = (
            f"✅ <@{user.id}> is no longer blocked themselves." if still else f"✅ <@{user.id}> is no longer blocked."
        )
        return Shown(view=cards.done(f"{said}\n-# But {quoted(still, 300)}" if still else said, undo=change.number))

    await respond(interaction, "set", work)


async def reports(interaction: Interaction, channel: int | None) -> None:
    """Set where reports go; without a channel they stay in the list of incidents."""
    await changing.set_rule(interaction, ("guild", ""), "reports", "" if channel is None else str(channel))


async def check(interaction: Interaction, switch: str) -> None:
    """Switch the picture check for the whole server."""
    await changing.set_rule(interaction, ("guild", ""), "check", switch)


def _stamp(now: Mapping[Key, Value]) -> str:
    """Return a hash of the lists: two forms have the same one if their lists were the same."""
    lists = [_list(now.get(("guild", "", name))) for name in LISTS]
    return hashlib.sha256(repr(lists).encode()).hexdigest()[:16]


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _list(value: Value | None) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()
