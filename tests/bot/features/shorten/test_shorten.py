"""`/shorten`: the ranking of words by their effect, and a button that keeps the version it showed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.discord.cards.job_cards import MAX_CONTENT
from bot.domain.errors import UserError
from bot.features.shorten.discord import MAX_PROMPT, ShortenButton, build_version, render_analysis
from bot.features.shorten.rules import (
    MAX_WORDS,
    build_short_prompts,
    cosine_similarity,
    leave_one_out,
    measure_movements,
    movement_shares,
    rank_words,
    split_words,
)
from bot.features.shorten.service import BATCH_SIZE, PromptShortener
from engine.bus import NoWorkerAnswers

VOCABULARY = """
    red apple upon the wooden table, in soft light; very old @everyone *bold* `tick` <@5> 日本 naïve 3.5
"""
prompts = st.lists(st.sampled_from(VOCABULARY.split()), min_size=2, max_size=MAX_WORDS).map(" ".join)


async def embed_letters(texts: Sequence[str]) -> list[list[float]]:
    """Embed each text as its letter counts: a missing word moves the vector a little."""
    assert len(texts) <= BATCH_SIZE
    return [[1.0, *(text.count(letter) for letter in "abcdefghilmnoprstuvwxy")] for text in texts]


@settings(max_examples=60, deadline=None)
@given(prompts, st.sampled_from(["", " --ar 2:1 --no fog, text", " --count 1 --tile"]))
def test_each_version_is_found_again_from_the_message_and_the_button(words: str, flags: str) -> None:
    text = words.replace("`", "'") + flags
    if len(text) > MAX_PROMPT:
        return
    weighed_words = asyncio.run(PromptShortener(embed_letters).weigh_prompt(text))
    content = render_analysis(text, weighed_words)
    assert len(content) <= MAX_CONTENT
    lengths = [len(one.version.word_indices) for one in weighed_words.shorter_prompts]
    assert lengths == sorted(set(lengths), reverse=True)
    assert all(0 < length < len(weighed_words.words) for length in lengths)
    assert math.isclose(sum(weighed_words.shares), 1)
    for number, one in enumerate(weighed_words.shorter_prompts, 1):
        button = ShortenButton(number, one.version.word_indices)
        assert len(button.item.custom_id or "") <= 100
        match = ShortenButton.__discord_ui_compiled_template__.fullmatch(button.item.custom_id or "")
        assert match
        parsed_button = asyncio.run(ShortenButton.from_custom_id(SimpleNamespace(), button.item, match))  # type: ignore[arg-type]
        message: Any = SimpleNamespace(content=content)
        assert build_version(message, parsed_button.word_indices) == f"{one.version.text}{flags}"


def test_a_word_counts_by_how_far_its_absence_turns_the_text() -> None:
    words = ("a", "red", "apple")
    assert leave_one_out(words) == ["a red apple", "red apple", "a apple", "a red"]
    movements = measure_movements([(1.0, 0.0), (1.0, 0.0), (0.8, 0.6), (0.0, 1.0)])
    assert movements == pytest.approx((0.0, 0.2, 1.0))
    assert movement_shares(movements) == pytest.approx((0, 1 / 6, 5 / 6))
    assert rank_words(movements) == [2, 1, 0]
    assert [one.text for one in build_short_prompts(words, movements)] == ["red apple", "apple"]


def test_without_any_effect_all_words_weigh_the_same() -> None:
    assert movement_shares((0.0, 0.0)) == (0.5, 0.5)
    assert cosine_similarity((0.0, 0.0), (1.0, 0.0)) == 0.0


def test_words_are_those_of_the_text_without_flags_weights_and_emphasis() -> None:
    assert split_words("(red:1.3) apple::2 , blue [pear]::-0.5 --no fog --ar 3:2") == ("red", "apple", "blue", "pear")


def test_without_a_consistent_text_encoder_shortening_is_refused() -> None:
    async def no_worker(texts: Sequence[str]) -> list[list[float]]:
        raise NoWorkerAnswers("nobody")

    async def embed_inconsistently(texts: Sequence[str]) -> list[list[float]]:
        return [[1.0] * (1 + len(text) % 2) for text in texts]

    for embed, reason in ((no_worker, "online"), (embed_inconsistently, "in different ways")):
        with pytest.raises(UserError, match=reason):
            asyncio.run(PromptShortener(embed).weigh_prompt("a red apple upon it"))


@pytest.mark.parametrize("content", ["", "no block", "```\none word\n```"])
def test_a_message_that_no_longer_shows_its_prompt_is_refused(content: str) -> None:
    message: Any = SimpleNamespace(content=content)
    with pytest.raises(UserError, match="use /shorten again"):
        build_version(message, (0, 5))
    with pytest.raises(UserError, match="use /shorten again"):
        build_version(None, (0,))
