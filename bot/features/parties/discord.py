"""Parties in Discord: `/party`, `/say`, the buttons under its picture, thumbs, and what a party adds to its card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import discord
from discord import app_commands
from discord.app_commands import Range

from bot.discord.cards import pictures
from bot.discord.cards.button_layout import MAX_ROW_BUTTONS, Button, ButtonRow
from bot.discord.cards.job_cards import MAX_CONTENT, Card
from bot.discord.components.forms import FormSubmission, create_form, form_id, open_form, text_field
from bot.discord.declarations import ButtonDeclaration, declare
from bot.discord.responses import member_of, reply_on_error, require_permission, respond_with_jobs, send_ephemeral
from bot.domain.errors import UserError
from bot.domain.texts import escape_discord, shorten
from bot.features.parties.rules import PartyBoard, PartyPhrase
from bot.features.parties.service import MAX_SAID, PartyService, Vote

if TYPE_CHECKING:
    from bot.discord.cards.pictures import PictureFile
    from bot.discord.client import DarkroomClient
    from bot.discord.declarations import Check
    from bot.domain.dto import AcceptedJob, Destination, JobView, Member
    from bot.services import Services

    Interaction = discord.Interaction[DarkroomClient]

MAX_PHRASES_SHOWN = 8  # two buttons each, in four rows
MAX_CREDITED = 20  # members
PHRASES_IN_ROW = 2
LONGEST_PARTY = 60  # minutes that Discord offers; the rules allow fewer
MENTION = re.compile(r"<@!?([0-9]{15,20})>")
NO_MENTIONS_GIVEN = "Name the members as mentions, like @ann @bob; without any, everybody here may take part."


@app_commands.command(
    description="Steer one picture together: all who are here say and vote what it shows",
    extras=declare("party", help="steer one together: {say}, 👍, 👎", rate="imagine"),
)
@app_commands.describe(
    prompt="What to begin with. Flags like --ar 3:2 work here too",
    minutes="How long the picture develops",
    members="Mentions of those who may take part; everybody here by default",
)
@app_commands.guild_only()
async def party(
    interaction: discord.Interaction[DarkroomClient],
    prompt: Range[str, 1, 2000],
    minutes: Range[int, 1, LONGEST_PARTY] | None = None,
    members: Range[str, 1, 2000] | None = None,
) -> None:
    async with reply_on_error(interaction):
        invited = parse_mentions(members or "")

        async def submit(member: Member, destination: Destination) -> list[AcceptedJob]:
            return await interaction.client.services.get(PartyService).open_party(
                prompt,
                member,
                destination,
                place=str(interaction.channel_id),
                minutes=minutes,
                invited=invited,
                key=f"party:{interaction.id}",
            )

        await respond_with_jobs(interaction, submit)


def parse_mentions(text: str) -> list[str]:
    """Return the ids of the mentioned members. Raises `UserError` for a text without mentions."""
    ids = [f"discord:{user}" for user in dict.fromkeys(MENTION.findall(text))]
    if text.strip() and not ids:
        raise UserError(NO_MENTIONS_GIVEN)
    return ids


@app_commands.command(description="In a party: say what its picture should show from now on", extras=declare("party"))
@app_commands.describe(words="A few words; they replace what you said before")
@app_commands.guild_only()
async def say(interaction: discord.Interaction[DarkroomClient], words: Range[str, 1, MAX_SAID]) -> None:
    async with reply_on_error(interaction):
        services = interaction.client.services
        parties = services.get(PartyService)
        job = await parties.find_job(str(interaction.channel_id))
        await require_permission(interaction, "party", await services.job_views.load_view(job))
        await send_ephemeral(interaction, escape_discord(await parties.say(job, words, member_of(interaction))))


async def open_phrase_form(interaction: Interaction, button: Button, view: JobView) -> None:
    """Open the form with its one question."""
    modal = create_form("Say what it should show", form_id("speak", view.id))
    help_text = "A few words; they replace what you said before"
    modal.add_item(text_field("words", "Words", help_text, max_length=MAX_SAID, single_line=True))
    await open_form(interaction, modal)


async def submit_phrase(interaction: Interaction, submission: FormSubmission, view: JobView) -> None:
    """Submit the form. Raises `UserError`."""
    parties = interaction.client.services.get(PartyService)
    words = submission.fields.get("words", "")
    await send_ephemeral(interaction, await parties.say(view.id, words, member_of(interaction)))


async def press_vote(value: Vote, interaction: Interaction, button: Button, view: JobView) -> None:
    """Count the vote: the next edit of the picture's message shows it. Raises `UserError`."""
    await interaction.client.services.get(PartyService).vote(view.id, button.index, value, member_of(interaction))
    await interaction.response.defer()


async def react_with_vote(
    value: Vote, services: Services, view: JobView, member: Member, require_permission: Check
) -> None:
    """Let a thumb vote on the newest phrase, under the picture of a party. Raises `UserError`."""
    parties = services.get(PartyService)
    if await parties.is_party(view.id):
        await require_permission("party")
        await parties.vote(view.id, None, value, member)


async def extend_progress(services: Services, view: JobView, card: Card, now: float) -> Card:
    """Add to the card of a developing picture what its party says."""
    board = await services.get(PartyService).find_board(view.id, view.created, now)
    return card if board is None else add_board(card, board)


async def extend_final(
    services: Services, view: JobView, card: Card, limit: int
) -> tuple[Card, tuple[PictureFile, ...]]:
    """Add to the card of a finished picture who made it together, and its film."""
    board = await services.get(PartyService).load_board(view.id)
    if board is None:
        return card, ()
    film = await pictures.render_film(services.gallery, view, limit)
    return add_credits(card, board), (film,) if film else ()


def add_board(card: Card, board: PartyBoard) -> Card:
    """Return the card of a developing picture with what its party says, and with buttons to say more and to vote."""
    phrases = _choose_shown(board.phrases)
    until = "" if board.ends_at is None else f" until <t:{round(board.ends_at)}:R>"
    lines = [f"🎉 A party{until} · {_count_members(len(board.members))} · `/say` what the picture should show"]
    lines += [f"> {_render_votes(phrase)} {_quote(phrase)}" for phrase in phrases]
    cancel = tuple(button for row in card.rows for button in row if button.kind == "cancel")
    first_row = (*cancel, Button("speak", board.job, "Say…"))
    return replace(
        card, content=_add_lines(card.content, lines), rows=(first_row, *_build_vote_rows(board.job, phrases))
    )


def add_credits(card: Card, board: PartyBoard) -> Card:
    """Return the card of a finished picture with who made it together."""
    if not board.members:
        return card
    said = {phrase.member_name: f" “{escape_discord(phrase.text, 60)}”" for phrase in board.phrases}
    names = [f"{escape_discord(name, 32)}{said.get(name, '')}" for name in board.members[:MAX_CREDITED]]
    more = len(board.members) - len(names)
    text = ", ".join([*names, f"and {more} more"] if more else names)
    return replace(card, content=_add_lines(card.content, [f"🎉 A picture by {text}"]))


def _choose_shown(phrases: Sequence[PartyPhrase]) -> list[PartyPhrase]:
    """Return the phrases with the most votes, in the order in which they were said."""
    ranked = sorted(phrases, key=lambda phrase: (phrase.votes_against - phrase.votes_for, -phrase.number))
    return sorted(ranked[:MAX_PHRASES_SHOWN], key=lambda phrase: phrase.number)


def _count_members(count: int) -> str:
    return "nobody takes part yet" if not count else "1 takes part" if count == 1 else f"{count} take part"


def _render_votes(phrase: PartyPhrase) -> str:
    against = f" 👎 {phrase.votes_against}" if phrase.votes_against else ""
    return f"👍 {phrase.votes_for}{against}"


def _quote(phrase: PartyPhrase) -> str:
    return f"**{escape_discord(phrase.text, 100)}** · {escape_discord(phrase.member_name, 32)}"


def _build_vote_rows(job: str, phrases: Sequence[PartyPhrase]) -> tuple[ButtonRow, ...]:
    pairs = [
        (
            Button("voteup", job, shorten(phrase.text, 30), phrase.number, "👍"),
            Button("votedown", job, "", phrase.number, "👎"),
        )
        for phrase in phrases
    ]
    assert 2 * PHRASES_IN_ROW <= MAX_ROW_BUTTONS
    return tuple(
        tuple(button for pair in pairs[start : start + PHRASES_IN_ROW] for button in pair)
        for start in range(0, len(pairs), PHRASES_IN_ROW)
    )


def _add_lines(content: str, lines: Sequence[str]) -> str:
    """Add the lines that fit, whole: a cut inside one could break its escapes."""
    for line in lines:
        if len(content) + 1 + len(line) > MAX_CONTENT:
            break
        content = f"{content}\n{line}"
    return content


BUTTONS = (
    ButtonDeclaration("speak", "party", open_phrase_form, submit_phrase),
    ButtonDeclaration("voteup", "party", partial(press_vote, 1)),
    ButtonDeclaration("votedown", "party", partial(press_vote, -1)),
)
REACTIONS = {"👍": partial(react_with_vote, 1), "👎": partial(react_with_vote, -1)}
