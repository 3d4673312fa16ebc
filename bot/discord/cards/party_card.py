"""What a party adds to the card of its picture: what is said, the votes, and at its end a line of credits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bot.discord.cards.button_layout import MAX_ROW_BUTTONS, Button, ButtonRow
from bot.discord.cards.job_cards import MAX_CONTENT, Card
from bot.domain.party import PartyBoard, PartyPhrase
from bot.domain.texts import escape_discord, shorten

MAX_PHRASES_SHOWN = 8  # two buttons each, in four rows
MAX_CREDITED = 20  # members
PHRASES_IN_ROW = 2


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
        (Button("voteup", job, shorten(phrase.text, 30), phrase.number), Button("votedown", job, "", phrase.number))
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
