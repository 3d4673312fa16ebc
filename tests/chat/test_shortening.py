"""Words weighed by what they move: the ranking itself, and that a press finds the version that was shown."""

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


async def lettered(texts: Sequence[str]) -> list[list[float]]:
    """Each text by how often it has each letter: whatever is left out moves it a little."""
    assert len(texts) <= AT_ONCE
    return [[1.0, *(text.count(letter) for letter in "abcdefghilmnoprstuvwxy")] for text in texts]


@settings(max_examples=60, deadline=None)
@given(prompts, st.sampled_from(["", " --ar 2:1 --no fog, text", " --count 1 --tile"]))
def test_each_version_is_found_again_from_the_message_and_the_button(words: str, flags: str) -> None:
    text = words.replace("`", "'") + flags
    if len(text) > PROMPT:
        return
    weighed = asyncio.run(Shortening(lettered).weigh(text))
    said = told(text, weighed)
    assert len(said) <= CONTENT
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
        message: Any = SimpleNamespace(content=said)
        assert shortened(message, again.which) == f"{one.version.text}{flags}"


def test_a_word_counts_by_how_far_its_absence_turns_the_text() -> None:
    words = ("a", "red", "apple")
    assert without_each(words) == ["a red apple", "red apple", "a apple", "a red"]
    moves = moved([(1.0, 0.0), (1.0, 0.0), (0.8, 0.6), (0.0, 1.0)])
    assert moves == pytest.approx((0.0, 0.2, 1.0))
    assert shares(moves) == pytest.approx((0, 1 / 6, 5 / 6))
    assert ranked(moves) == [2, 1, 0]
    assert [one.text for one in versions(words, moves)] == ["red apple", "apple"]


def test_where_nothing_moves_all_words_count_the_same() -> None:
    assert shares((0.0, 0.0)) == (0.5, 0.5)
    assert alike((0.0, 0.0), (1.0, 0.0)) == 0.0


def test_words_are_those_of_the_text_without_flags_weights_and_emphasis() -> None:
    assert words_of("(red:1.3) apple::2 , blue [pear]::-0.5 --no fog --ar 3:2") == ("red", "apple", "blue", "pear")


def test_without_anybody_who_reads_texts_it_is_refused() -> None:
    async def nobody(texts: Sequence[str]) -> list[list[float]]:
        raise NobodyAnswers("nobody")

    async def changing(texts: Sequence[str]) -> list[list[float]]:
        return [[1.0] * (1 + len(text) % 2) for text in texts]

    for embed, reason in ((nobody, "online"), (changing, "in different ways")):
        with pytest.raises(Refused, match=reason):
            asyncio.run(Shortening(embed).weigh("a red apple upon it"))


@pytest.mark.parametrize("content", ["", "no block", "```\none word\n```"])
def test_a_message_that_does_not_show_its_prompt_any_more_is_refused(content: str) -> None:
    message: Any = SimpleNamespace(content=content)
    with pytest.raises(Refused, match="use /shorten again"):
        shortened(message, (0, 5))
    with pytest.raises(Refused, match="use /shorten again"):
        shortened(None, (0,))
