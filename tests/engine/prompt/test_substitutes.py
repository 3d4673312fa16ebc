"""Substitutes: nouns that a model never learned are replaced, and nothing else of a text changes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prompt.emphasis import split_by_weight
from engine.prompt.style_guide import replace_nouns

NOUNS = {
    "capybara": "mouse face",
    "mitten": "gloves",
    "guinea pig": "hamster",
    "wrench box": "toolbox",
    "foxhound": "dog",
    "church mouse": "mouse",
    "pansy": "white flower",
    "fireman": "firefighter",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a capybara, 3d render", "a mouse face, 3d render"),
        ("Capybara and CAPYBARA", "mouse face and mouse face"),
        ("two mittens", "two gloves"),
        ("guinea pigs in a field", "hamster in a field"),
        ("wrench boxes, pansies, firemen", "toolbox, white flower, firefighter"),
        ("guinea, pig", "guinea, pig"),
        ("(mitten:1.3), [capybara]", "(gloves:1.3), [mouse face]"),
        ("<mitten> and mitten-like", "<mitten> and mitten-like"),
        ("mittened, unmitten, mitten2", "mittened, unmitten, mitten2"),
        ("the church mouse", "the mouse"),
        ("the capybara's hat", "the mouse face's hat"),
        ("mitten't, mitten’ll, o'mitten", "mitten't, mitten’ll, o'mitten"),
        ("a singer called Mitten", "a singer called Mitten"),
        ("Mitten", "gloves"),
        ("", ""),
    ],
)
def test_a_noun_is_replaced_where_it_stands_alone(text: str, expected: str) -> None:
    assert replace_nouns(text, NOUNS) == expected


def test_words_that_are_kept_stay() -> None:
    assert replace_nouns("a Capybara, mittens", NOUNS, {"capybara"}) == "a Capybara, gloves"


@given(st.text(alphabet="abc xyz,.()[]<>:-1'é\n", max_size=80))
def test_a_text_without_such_nouns_stays_as_it_is(text: str) -> None:
    assert replace_nouns(text, NOUNS) == text
    assert replace_nouns(text, {}) == text


@given(st.lists(st.sampled_from(["capybara", "a", "fox", "mittens", "(mitten:1.5)", "[pansy]"]), max_size=12))
def test_weights_stay_with_their_words(words: list[str]) -> None:
    text = ", ".join(words)
    weights = [(part.weight, part.text.count(",")) for part in split_by_weight(text)]
    assert [(part.weight, part.text.count(",")) for part in split_by_weight(replace_nouns(text, NOUNS))] == weights


@pytest.mark.parametrize("text", ["a " * 20_000, "mitten-" * 20_000, "guinea " * 20_000 + "-"])
def test_long_texts_end_soon(text: str) -> None:
    """No repetition makes the search slow: a quadratic one would take minutes here."""
    started = time.perf_counter()
    replace_nouns(text, NOUNS)
    assert time.perf_counter() - started < 20
