"""A member's suffix: after the words, before the flags, never twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.prompt import parse
from bot.prompt.flag_aliases import add_end_prompt_suffix, add_suffix


@pytest.mark.parametrize(
    ("text", "suffix", "combined"),
    [
        ("red apple", "at dawn", "red apple at dawn"),
        ("red apple ", ", at dawn", "red apple, at dawn"),
        ("red apple --ar 3:2", "at dawn", "red apple at dawn --ar 3:2"),
        ("red apple —seed 7", "at dawn", "red apple at dawn —seed 7"),
        ("red apple --seed 7", "--seed 9 --no fog", "red apple --seed 9 --no fog --seed 7"),
        ("red apple, At  Dawn", "at dawn", "red apple, At  Dawn"),
        ("red apple", "  ", "red apple"),
        ("", "at dawn", " at dawn"),
    ],
)
def test_a_suffix_goes_after_the_words_and_before_the_flags(text: str, suffix: str, combined: str) -> None:
    assert add_suffix(text, suffix) == combined


def test_what_is_typed_wins_over_the_suffix() -> None:
    (request,) = parse(add_suffix("apple --seed 7", "pale --seed 9 --steps 20"), None).prompts
    assert (request.words, request.seed, request.steps) == ("apple pale", 7, 20)


@pytest.mark.parametrize(
    ("suffix", "combined"),
    [
        ("soft light --ar 3:2", "a cat soft light"),
        (", soft light --no fog, text", "a cat, soft light"),
        ("--ar 3:2 soft light", "a cat soft light"),
        ("--mine", "a cat pale"),
        ("--steps 9", "a cat"),
        ("{red,blue} light", "a cat"),
        ("light::2", "a cat"),
        ("", "a cat"),
    ],
)
def test_the_end_of_an_interpolation_takes_only_the_words_of_a_suffix(suffix: str, combined: str) -> None:
    assert add_end_prompt_suffix("a cat", suffix, {"mine": "pale --seed 7"}) == combined


@given(st.text(max_size=80), st.text(max_size=40))
def test_a_suffix_is_added_only_once(text: str, suffix: str) -> None:
    suffixed_once = add_suffix(text, suffix)
    assert add_suffix(suffixed_once, suffix) == suffixed_once
