"""Words weighed by their effect: the ranking itself, and a button that finds the version it showed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.chat.commands.shorten import PROMPT, Shorter, shortened, told
from bot.chat.presenter import CONTENT
from bot.desk.shortening import AT_ONCE, Shortening
from bot.prompt.shortening import MOST, alike, moved, ranked, shares, versions, without_each, words_of
from bot.refused import Refused
from engine.bus import NobodyAnswers

VOCABULARY = [
    "red", "apple", "upon", "the", "wooden", "table,", "in", "soft", "light;", "very", "old", "@everyone", "*bold*",
    "`tick`", "<@5>", "日本", "naïve", "3.5",
]  # fmt: skip
prompts = st.lists(st.sampled_from(VOCABULARY), min_size=2, max_size=MOST).map(" ".join)


async def embed_letters(texts: Sequence[str]) -> list[list[float]]:
    """Embed each text as its letter counts: any word left out moves it a little."""
    assert len(texts) <= AT_ONCE
    return [[1.0, *(text.count(letter) for letter in "abcdefghilmnoprstuvwxy")] for text in texts]


@settings(max_examples=60, deadline=None)
@given(prompts, st.sampled_from(["", " --ar 2:1 --no fog, text", " --count 1 --tile"]))
def test_each_version_is_found_again_from_the_message_and_the_button(words: str, flags: str) -> None:
    text = words.replace("`", "'") + flags
    if len(text) > PROMPT:
        return
    weighed = asyncio.run(Shortening(embed_letters).weigh(text))
    content = told(text, weighed)
    assert len(content) <= CONTENT
    lengths = [len(one.version.kept) for one in weighed.shorter]
    assert lengths == sorted(set(lengths), reverse=True)
    assert all(0 < length < len(weighed.words) for length in lengths)
    assert math.isclose(sum(weighed.shares), 1)
    for number, one in enumerate(weighed.shorter, 1):
        button = Shorter(number, one.version.kept)
        assert len(button.item.custom_id or "") <= 100
        match = Shorter.__discord_ui_compiled_template__.fullmatch(button.item.custom_id or "")
        assert match
        again = asyncio.run(Shorter.from_custom_id(SimpleNamespace(), button.item, match))  # type: ignore[arg-type]
        message: Any = SimpleNamespace(content=content)
        assert shortened(message, again.which) == f"{one.version.text}{flags}"


def test_a_word_counts_by_how_far_its_absence_turns_the_text() -> None:
    words = ("a", "red", "apple")
    assert without_each(words) == ["a red apple", "red apple", "a apple", "a red"]
    moves = moved([(1.0, 0.0), (1.0, 0.0), (0.8, 0.6), (0.0, 1.0)])
    assert moves == pytest.approx((0.0, 0.2, 1.0))
    assert shares(moves) == pytest.approx((0, 1 / 6, 5 / 6))
    assert ranked(moves) == [2, 1, 0]
    assert [one.text for one in versions(words, moves)] == ["red apple", "apple"]


def test_without_any_effect_all_words_weigh_the_same() -> None:
    assert shares((0.0, 0.0)) == (0.5, 0.5)
    assert alike((0.0, 0.0), (1.0, 0.0)) == 0.0


def test_words_are_those_of_the_text_without_flags_weights_and_emphasis() -> None:
    assert words_of("(red:1.3) apple::2 , blue [pear]::-0.5 --no fog --ar 3:2") == ("red", "apple", "blue", "pear")


def test_without_a_consistent_text_encoder_shortening_is_refused() -> None:
    async def no_worker(texts: Sequence[str]) -> list[list[float]]:
        raise NobodyAnswers("nobody")

    async def inconsistent(texts: Sequence[str]) -> list[list[float]]:
        return [[1.0] * (1 + len(text) % 2) for text in texts]

    for embed, reason in ((no_worker, "online"), (inconsistent, "in different ways")):
        with pytest.raises(Refused, match=reason):
            asyncio.run(Shortening(embed).weigh("a red apple upon it"))


@pytest.mark.parametrize("content", ["", "no block", "```\none word\n```"])
def test_a_message_that_no_longer_shows_its_prompt_is_refused(content: str) -> None:
    message: Any = SimpleNamespace(content=content)
    with pytest.raises(Refused, match="use /shorten again"):
        shortened(message, (0, 5))
    with pytest.raises(Refused, match="use /shorten again"):
        shortened(None, (0,))
