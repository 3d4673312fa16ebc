"""`/moderation`: refused words and patterns, blocks, the picture check, reports, and the list of incidents.

Discord shows the commands to those who may manage messages; each checks the table, too. A form holds all words at once.
A refused or outdated form comes back as a file: nothing that a member typed is lost.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import discord
from discord import app_commands, ui
from discord.app_commands import Range

from bot.discord.cards.job_cards import render_refusal
from bot.discord.components import review_buttons
from bot.discord.declarations import declare
from bot.discord.responses import message_link
from bot.discord.settings import cards, rules, texts
from bot.discord.settings.commands import Channel
from bot.discord.settings.responses import (
    CardPress,
    Reply,
    Request,
    answers,
    cut_page,
    make_button,
    make_layout,
    make_pager,
    make_text,
)
from bot.domain.errors import UserError
from bot.domain.incidents import Incident, incident_sentence
from bot.domain.texts import escape_discord
from bot.policy.rules import value_parser
from bot.policy.rules.catalogue import SETTINGS
from bot.policy.rules.rule import RuleChange, RuleKey, RuleValue

if TYPE_CHECKING:
    from bot.discord.client import Interaction

LIST_SETTINGS = ("words", "patterns")
LISTS_CHANGED = (
    "Somebody changed these lists while your form was open: nothing was saved, and what you typed is in this file."
)
TOO_LONG = (
    "These lists are too long for a form: take /settings export, edit the file, and send it with /settings import. "
    "Single words go by /moderation words with add or remove."
)
# incidents on a page, in all; characters of one
INCIDENTS_PER_PAGE = 5
MAX_INCIDENTS = 500
TEXT_LENGTH = 400
WAITING = "waiting"
ALL = "all"
EVERYONE = ("guild", "")  # for whom a rule is

moderation = app_commands.Group(
    name="moderation",
    description="Moderation: word filter, blocks, reports, picture check",
    extras=declare(rate="settings"),
    default_permissions=discord.Permissions(manage_messages=True),
    allowed_contexts=app_commands.AppCommandContext(guild=True, dm_channel=False, private_channel=False),
    allowed_installs=app_commands.AppInstallationType(guild=True, user=False),
)


@moderation.command(description="Words and patterns that no prompt may have; without options, a form with all of them")
@app_commands.describe(add="Words to add, with commas between them", remove="Words to take off the list")
async def words(
    interaction: Interaction, add: Range[str, 1, 2000] | None = None, remove: Range[str, 1, 2000] | None = None
) -> None:
    if add is None and remove is None:
        await edit_words(interaction)
    else:
        await change_words(interaction, add or "", remove or "")


@answers("set", "words")
async def edit_words(request: Request, press: CardPress | None = None) -> ui.Modal:
    """Open the form with all words and patterns."""
    lists = _word_lists(await rules.load_own_rules(request))
    if any(len("\n".join(entries)) > cards.VALUE_LENGTH for entries in lists.values()):
        raise UserError(TOO_LONG, 413)
    return cards.build_words_form(lists["words"], lists["patterns"], _hash_lists(lists))


@answers("set", "reword")
async def save_words(request: Request, press: CardPress) -> Reply:
    """Apply the submitted form: an error in one list leaves both as they were."""
    typed_lines = {name: press.first_value(name).splitlines() for name in LIST_SETTINGS}
    try:
        lists = _word_lists(await rules.load_own_rules(request))
        if press.parts and press.parts[0] != _hash_lists(lists):
            raise UserError(LISTS_CHANGED)  # a form holds the whole lists: it would remove what was added
        changes = await _apply_word_lists(request, lists, typed_lines)
    except UserError as error:
        text = "\n".join(line for name in LIST_SETTINGS for line in (f"# {name}", *typed_lines[name]))
        typed_file = discord.File(io.BytesIO(text.encode()), filename="what-you-typed.txt")
        return Reply(content=render_refusal(error.sentence), files=(typed_file,), as_new_message=True)
    text = "\n".join(map(texts.describe_change, changes)) or "Nothing changed."
    return Reply(view=cards.build_result(text), as_new_message=True)


async def _apply_word_lists(
    request: Request, old_lists: Mapping[str, Sequence[str]], typed_lines: Mapping[str, Sequence[str]]
) -> list[RuleChange]:
    new_lists = {name: [line.strip() for line in lines if line.strip()] for name, lines in typed_lines.items()}
    for name, lines in new_lists.items():
        if lines:
            value_parser.parse_list(SETTINGS[name], lines)  # both are checked before either is changed
    changes = list[RuleChange]()
    for name, lines in new_lists.items():
        if set(lines) == set(old_lists[name]):
            continue
        if lines:
            changes.append(await request.rules.set_rule(request.member, *EVERYONE, name, lines))
        else:
            changes.append(await request.rules.unset_rule(request.member, *EVERYONE, name))
    return changes


@answers("set")
async def change_words(request: Request, add: str, remove: str) -> Reply:
    """Add and remove single words, by command; the rest stays."""
    lists = _word_lists(await rules.load_own_rules(request))
    removed_words = {part.casefold() for part in _split_words(remove)}
    unlisted_words = removed_words - {word.casefold() for word in lists["words"]}
    if unlisted_words:
        raise UserError(f"These are not on the list: {', '.join(sorted(unlisted_words))}.")
    remaining_words = [word for word in lists["words"] if word.casefold() not in removed_words] + _split_words(add)
    changes = await _apply_word_lists(request, lists, {"words": remaining_words})
    text = "\n".join(map(texts.describe_change, changes)) or "Nothing changed: they are listed."
    return Reply(view=cards.build_result(text))


def _split_words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _word_lists(own_rules: Mapping[RuleKey, RuleValue]) -> dict[str, tuple[str, ...]]:
    values = {name: own_rules.get((*EVERYONE, name)) for name in LIST_SETTINGS}
    return {name: value if isinstance(value, tuple) else () for name, value in values.items()}


def _hash_lists(lists: Mapping[str, Sequence[str]]) -> str:
    """Return a hash of the lists: two forms have the same one if their lists were the same."""
    return hashlib.sha256(repr(list(lists.values())).encode()).hexdigest()[:16]


@moderation.command(description="A member may make nothing here any more")
@app_commands.describe(member="The member; also one who has left", reason="For the moderators' list")
async def block(interaction: Interaction, member: discord.User, reason: Range[str, 1, 200] | None = None) -> None:
    await block_member(interaction, member, reason or "")


@answers("set")
async def block_member(request: Request, user: discord.abc.User, reason: str) -> Reply:
    """Block a member; the list of incidents says who did it and why."""
    user_id = f"discord:{user.id}"
    if user_id == request.member.id:
        raise UserError("You cannot block yourself; ask another admin.")
    if (await rules.load_own_rules(request)).get(("user", user_id, "blocked")):
        raise UserError("They are blocked already.")
    change = await request.rules.set_rule(request.member, "user", user_id, "blocked", "on")
    await request.services.moderation.note_block(f"{user.display_name} ({user.id})", request.member, reason)
    reason_line = f"\n-# Reason: {escape_discord(reason, 200)}" if reason else ""
    text = f"⛔ <@{user.id}> is blocked: they can make nothing here. What runs is not stopped.{reason_line}"
    return Reply(view=cards.build_result(text, undo_number=change.number))


@moderation.command(description="A blocked member may ask for pictures again")
@app_commands.describe(member="The member")
async def unblock(interaction: Interaction, member: discord.User) -> None:
    await unblock_member(interaction, member)


@answers("set")
async def unblock_member(request: Request, user: discord.abc.User) -> Reply:
    """Unblock a member; say so if one of their roles is still blocked."""
    own_rules = await rules.load_own_rules(request)
    user_id = f"discord:{user.id}"
    member_roles = user.roles if isinstance(user, discord.Member) else ()
    blocked_roles = [f"“{role.name}”" for role in member_roles if own_rules.get(("role", str(role.id), "blocked"))]
    role_note = f"their role {', '.join(blocked_roles)} is, until /settings unset takes that away."
    if not own_rules.get(("user", user_id, "blocked")):
        raise UserError(
            f"They are not blocked themselves; {role_note}" if blocked_roles else "They are not blocked here."
        )
    change = await request.rules.unset_rule(request.member, "user", user_id, "blocked")
    text = f"✅ <@{user.id}> is no longer blocked."
    if blocked_roles:
        text = f"✅ <@{user.id}> is no longer blocked by name.\n-# But {escape_discord(role_note, 300)}"
    return Reply(view=cards.build_result(text, undo_number=change.number))


@moderation.command(description="Where members' reports go; without a channel, to the list of incidents alone")
@app_commands.describe(channel="A channel that moderators read, and the bot may write in")
async def reports(interaction: Interaction, channel: Channel | None = None) -> None:
    await rules.set_rule(interaction, EVERYONE, "reports", "" if channel is None else str(channel))


@moderation.command(description="Reports, held pictures, refused words: what waits for a moderator, and what happened")
@app_commands.describe(which="What waits, or all")
async def incidents(interaction: Interaction, which: Literal["waiting", "all"] = "waiting") -> None:
    await show_incidents(interaction, CardPress((which,), {}))


@moderation.command(name="held", description="Pictures that the picture check holds and nobody has decided about")
async def list_held(interaction: Interaction) -> None:
    await review_buttons.list_held_jobs(interaction)


@moderation.command(description="Show pictures only after the picture check has passed them")
@app_commands.describe(switch="On or off")
async def check(interaction: Interaction, switch: Literal["on", "off"]) -> None:
    await rules.set_rule(interaction, EVERYONE, "check", switch)


@answers("settings", "incidents")
async def show_incidents(request: Request, press: CardPress) -> Reply:
    """Show a page of the incidents that wait for a moderator, or of all."""
    return await _load_incidents(request, press.parts[:1] == (ALL,), press.number_at())


@answers("settings", "shut")
async def close_incident(request: Request, press: CardPress) -> Reply:
    """Close an incident; the list stays."""
    incident = await request.services.moderation.close_incident(press.number_at(0), request.member)
    notice = cards.build_notice(f"✅ No. {incident.number} is closed.")
    return await _load_incidents(request, press.parts[1:2] == (ALL,), press.number_at(), notice)


async def _load_incidents(request: Request, shows_all: bool, page: int, notice: cards.Notice = ()) -> Reply:
    """Return one page; an incident that waits for a moderator has a button to close it."""
    found = await request.services.moderation.list_incidents(
        request.member, MAX_INCIDENTS, undecided_only=not shows_all
    )
    page_incidents, page, pages = cut_page(found, page, INCIDENTS_PER_PAGE)
    list_name, title, nothing = (
        (ALL, "## Incidents", "Nothing yet.")
        if shows_all
        else (WAITING, "## Waiting for a moderator", "Nothing waits.")
    )
    items: list[ui.Item[Any]] = [*notice, make_text(title)]
    if not page_incidents:
        items.append(make_text(nothing))
    for incident in page_incidents:
        text = await _format_incident(request, incident)
        close_button = make_button("Close", "shut", incident.number, list_name, page)
        items.append(ui.Section(text, accessory=close_button) if incident.is_undecided else make_text(text))
    items += make_pager("incidents", list_name, page=page, pages=pages)
    label, other_list = ("Only what waits", WAITING) if shows_all else ("Show all", ALL)
    other_row = ui.ActionRow(make_button(label, "incidents", other_list, 0))
    return Reply(view=make_layout(*items, other_row, colour=cards.BLUE))


async def _format_incident(request: Request, incident: Incident) -> str:
    """Return an incident, when it was, and where its picture is shown, if it still is."""
    link = ""
    if incident.job:
        try:
            link = message_link((await request.services.deliveries.answer_destination(incident.job)).address)
        except UserError:
            link = ""
    head = f"**{incident.number}.** {escape_discord(incident_sentence(incident), TEXT_LENGTH)}"
    return f"{head}\n-# <t:{round(incident.created_at)}:R>" + (f" · {link}" if link else "")
