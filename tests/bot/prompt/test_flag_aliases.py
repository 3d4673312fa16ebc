"""Flag aliases in prompts: where their words and flags go."""

from __future__ import annotations

import pytest

from bot.domain.errors import UserError
from bot.prompt import parse
from bot.prompt.flag_aliases import expand_flag_aliases, find_unknown_flags

ALIASES = {"mine": "--ar 3:2 --steps 200", "soft": ", in soft light --no fog", "warm": "warm"}


@pytest.mark.parametrize(
    ("typed_prompt", "read"),
    [
        ("terrier --mine", "terrier --ar 3:2 --steps 200"),
        ("terrier —Mine", "terrier --ar 3:2 --steps 200"),
        ("terrier --mine cute", "terrier cute --ar 3:2 --steps 200"),
        ("terrier --seed 7 --soft --count 1", "terrier, in soft light --seed 7 --no fog --count 1"),
        ("terrier --no cat --warm", "terrier warm --no cat"),
        ("red:: --warm blue::-0.5", "red:: warm blue::-0.5"),
        ("terrier --warm --warm", "terrier warm warm"),
        ("terrier --other", "terrier --other"),
        ("terrier, 3--warm", "terrier, 3--warm"),
    ],
)
def test_an_alias_adds_its_words_to_the_prompt_and_its_flags_to_the_flags(typed_prompt: str, read: str) -> None:
    assert expand_flag_aliases(typed_prompt, ALIASES)[0] == read


def test_what_an_alias_stands_for_is_said_once() -> None:
    assert expand_flag_aliases("a --warm --warm", ALIASES)[1] == ("--warm stands for “warm”.",)
    assert expand_flag_aliases("a --seed 7", ALIASES) == ("a --seed 7", ())


def test_aliases_do_not_nest_and_built_in_flags_win() -> None:
    assert expand_flag_aliases("a --x", {"x": "--mine", **ALIASES})[0] == "a --mine"
    assert expand_flag_aliases("a --ar 1:1", {"ar": "--steps 5"})[0] == "a --ar 1:1"


def test_an_alias_applies_to_every_job_of_a_permutation() -> None:
    requests = parse("{sun, moon --warm} --mine", None, aliases=ALIASES).prompts
    assert [(one.words, one.ar, one.steps) for one in requests] == [("sun", (3, 2), 200), ("moon warm", (3, 2), 200)]


def test_an_alias_does_not_raise_the_length_limit_of_a_prompt() -> None:
    with pytest.raises(UserError, match="2000 characters"):
        parse("x" * 1990 + " --mine", None, aliases=ALIASES)


def test_only_unknown_flags_are_looked_up_as_aliases() -> None:
    assert find_unknown_flags("a --mine --v 6 --ar 3:2 --c 5 --Mine") == ("mine",)
    assert find_unknown_flags("a fox {--mine,--warm,--ar 3:2}") == ("mine", "warm")
    requests = parse("a fox {--mine,--warm}", None, aliases=ALIASES).prompts
    assert [(one.words, one.steps) for one in requests] == [("a fox", 200), ("a fox warm", None)]
