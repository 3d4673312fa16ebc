"""Moderation settings: refused words and patterns, blocks, the picture check, reports.

A form holds all words at once. A refused or outdated form comes back as a file: nothing that a member typed is lost.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import discord
from discord import ui

from bot.discord.cards.job_cards import render_refusal
from bot.discord.settings import cards, forms, rule_changes, rule_pages, texts
from bot.discord.settings.responses import Reply, respond
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord
from bot.policy.rules import value_parser
from bot.policy.rules.catalogue import SETTINGS
from bot.policy.rules.rule import RuleChange, RuleKey, RuleValue

if TYPE_CHECKING:
    from bot.discord.settings.responses import CardPress, Interaction
    from bot.domain.dto import Member

LIST_SETTINGS = ("words", "patterns")
LISTS_CHANGED = (
    "Somebody changed these lists while your form was open: nothing was saved, and what you typed is in this file."
)
TOO_LONG = (
    "These lists are too long for a form: take /settings export, edit the file, and send it with /settings import. "
    "Single words go by /moderation words with add or remove."
)


async def edit_words(interaction: Interaction, press: CardPress | None = None) -> None:
    """Open the form with all words and patterns."""

    async def build_form(member: Member) -> ui.Modal:
        own_rules = await rule_changes.load_own_rules(interaction, member)
        words, patterns = (_as_texts(own_rules.get(("guild", "", name))) for name in LIST_SETTINGS)
        if any(len("\n".join(entries)) > forms.VALUE_LENGTH for entries in (words, patterns)):
            raise UserError(TOO_LONG, 413)
        return forms.build_words_form(words, patterns, _lists_hash(own_rules))

    await respond(interaction, "set", build_form)


async def save_words(interaction: Interaction, press: CardPress) -> None:
    """Apply the submitted form: an error in one list leaves both as they were."""

    async def build_reply(member: Member) -> Reply:
        typed_lines = {name: press.first_value(name).splitlines() for name in LIST_SETTINGS}
        try:
            if press.parts and press.parts[0] != _lists_hash(await rule_changes.load_own_rules(interaction, member)):
                raise UserError(LISTS_CHANGED)  # a form holds the whole lists: it would remove what was added
            changes = await _apply_word_lists(interaction, member, typed_lines)
        except UserError as error:
            text = "\n".join(line for name in LIST_SETTINGS for line in (f"# {name}", *typed_lines[name]))
            typed_file = discord.File(io.BytesIO(text.encode()), filename="what-you-typed.txt")
            return Reply(content=render_refusal(error.sentence), files=(typed_file,), as_new_message=True)
        return Reply(
            view=cards.build_result("\n".join(map(texts.describe_change, changes)) or "Nothing changed."),
            as_new_message=True,
        )

    await respond(interaction, "set", build_reply)


async def _apply_word_lists(
    interaction: Interaction, member: Member, typed_lines: Mapping[str, Sequence[str]]
) -> list[RuleChange]:
    own_rules = await rule_changes.load_own_rules(interaction, member)
    new_lists = {name: [line.strip() for line in lines if line.strip()] for name, lines in typed_lines.items()}
    for name, lines in new_lists.items():
        if lines:
            value_parser.parse_list(SETTINGS[name], lines)  # both are checked before either is changed
    administration = rule_pages.get_administration(interaction)
    changes = list[RuleChange]()
    for name, lines in new_lists.items():
        if set(lines) == set(_as_texts(own_rules.get(("guild", "", name)))):
            continue
        if lines:
            changes.append(await administration.set_rule(member, "guild", "", name, lines))
        else:
            changes.append(await administration.unset_rule(member, "guild", "", name))
    return changes


async def change_words(interaction: Interaction, add: str, remove: str) -> None:
    """Add and remove single words, by command; the rest stays."""

    async def build_reply(member: Member) -> Reply:
        own_rules = await rule_changes.load_own_rules(interaction, member)
        words = _as_texts(own_rules.get(("guild", "", "words")))
        added_words = _split_words(add)
        removed_words = {part.casefold() for part in _split_words(remove)}
        unlisted_words = removed_words - {word.casefold() for word in words}
        if unlisted_words:
            raise UserError(f"These are not on the list: {', '.join(sorted(unlisted_words))}.")
        remaining_words = [word for word in words if word.casefold() not in removed_words] + added_words
        changes = await _apply_word_lists(interaction, member, {"words": remaining_words})
        return Reply(
            view=cards.build_result(
                "\n".join(map(texts.describe_change, changes)) or "Nothing changed: they are listed."
            )
        )

    await respond(interaction, "set", build_reply)


async def block(interaction: Interaction, user: discord.abc.User, reason: str) -> None:
    """Block a member; the list of incidents says who did it and why."""

    async def build_reply(member: Member) -> Reply:
        user_id = f"discord:{user.id}"
        if user_id == member.id:
            raise UserError("You cannot block yourself; ask another admin.")
        if (await rule_changes.load_own_rules(interaction, member)).get(("user", user_id, "blocked")):
            raise UserError("They are blocked already.")
        change = await rule_pages.get_administration(interaction).set_rule(member, "user", user_id, "blocked", "on")
        await interaction.client.services.moderation.note_block(f"{user.display_name} ({user.id})", member, reason)
        reason_line = f"\n-# Reason: {escape_discord(reason, 200)}" if reason else ""
        text = f"⛔ <@{user.id}> is blocked: they can make nothing here. What runs is not stopped.{reason_line}"
        return Reply(view=cards.build_result(text, undo_number=change.number))

    await respond(interaction, "set", build_reply)


async def unblock(interaction: Interaction, user: discord.abc.User) -> None:
    """Unblock a member; say so if one of their roles is still blocked."""

    async def build_reply(member: Member) -> Reply:
        own_rules = await rule_changes.load_own_rules(interaction, member)
        user_id = f"discord:{user.id}"
        member_roles = user.roles if isinstance(user, discord.Member) else ()
        blocked_roles = [f"“{role.name}”" for role in member_roles if own_rules.get(("role", str(role.id), "blocked"))]
        role_note = (
            f"their role {', '.join(blocked_roles)} is, until /settings unset takes that away." if blocked_roles else ""
        )
        if not own_rules.get(("user", user_id, "blocked")):
            raise UserError(
                f"They are not blocked themselves; {role_note}" if role_note else "They are not blocked here."
            )
        change = await rule_pages.get_administration(interaction).unset_rule(member, "user", user_id, "blocked")
        text = (
            f"✅ <@{user.id}> is no longer blocked by name." if role_note else f"✅ <@{user.id}> is no longer blocked."
        )
        return Reply(
            view=cards.build_result(
                f"{text}\n-# But {escape_discord(role_note, 300)}" if role_note else text, undo_number=change.number
            )
        )

    await respond(interaction, "set", build_reply)


async def set_reports_channel(interaction: Interaction, channel: int | None) -> None:
    """Set where reports go; without a channel they stay in the list of incidents."""
    await rule_changes.set_rule(interaction, ("guild", ""), "reports", "" if channel is None else str(channel))


async def switch_picture_check(interaction: Interaction, switch: str) -> None:
    """Switch the picture check for the whole server."""
    await rule_changes.set_rule(interaction, ("guild", ""), "check", switch)


def _lists_hash(own_rules: Mapping[RuleKey, RuleValue]) -> str:
    """Return a hash of the lists: two forms have the same one if their lists were the same."""
    lists = [_as_texts(own_rules.get(("guild", "", name))) for name in LIST_SETTINGS]
    return hashlib.sha256(repr(lists).encode()).hexdigest()[:16]


def _split_words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _as_texts(value: RuleValue | None) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()
