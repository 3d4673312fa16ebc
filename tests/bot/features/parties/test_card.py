"""The card of a party: within Discord's limits, and nothing in it that a member could abuse."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from bot.discord.cards import job_cards
from bot.features.parties import discord as party_card
from bot.features.parties.rules import PartyBoard, PartyPhrase
from shared.sample_views import JOB, NOW, make_view

words = st.text(min_size=1, max_size=200) | st.text(
    alphabet="@everyone<>&#`*_~|\\[]()/:t1 \n", min_size=1, max_size=200
)
phrases = st.builds(PartyPhrase, st.integers(1, 10**6), words, words, st.integers(0, 200), st.integers(0, 200))
boards = st.builds(
    PartyBoard,
    st.just(JOB),
    st.none() | st.just(NOW + 60),
    st.booleans(),
    st.lists(phrases, max_size=30, unique_by=lambda phrase: phrase.number).map(tuple),
    st.lists(words, max_size=30).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(boards, words)
def test_the_board_and_the_credits_fit_and_do_no_harm(board: PartyBoard, prompt: str) -> None:
    view = make_view(prompt=prompt * 10)
    developing = job_cards.render_progress(view, 3, 1000, 20.0, NOW, is_steerable=True)
    for card in (party_card.add_board(developing, board), party_card.add_credits(job_cards.render_ended(view), board)):
        assert len(card.content) <= job_cards.MAX_CONTENT
        assert "@everyone" not in card.content
        assert not re.search(r"(?<!\\)<(?!t:\d+:R>)", card.content)
        ids = [button.custom_id for row in card.rows for button in row]
        assert len(ids) == len(set(ids))
        assert len(card.rows) <= 5
        assert all(len(row) <= 5 for row in card.rows)
        assert all(len(button.label) <= 80 for row in card.rows for button in row)


def test_the_phrases_with_the_most_votes_are_shown_in_the_order_in_which_they_were_said() -> None:
    said = tuple(PartyPhrase(number, f"phrase {number}", "Bob", number % 5, 0) for number in range(1, 13))
    card = party_card.add_board(
        job_cards.render_progress(make_view(), 3, 1000, 20.0, NOW), PartyBoard(JOB, None, True, said, ("Bob",))
    )
    votes = [button.index for row in card.rows for button in row if button.kind == "voteup"]
    assert votes == [2, 3, 4, 7, 8, 9, 11, 12]
    assert "phrase 12" in card.content
    assert "phrase 1**" not in card.content
