"""The prompt of a job as a form is filled in with it, and whether somebody left it unchanged. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.prompt.flags import split
from bot.prompt.permutations import literally
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.views import View

LONGEST = 2000  # characters, as /imagine takes them


def words_of(view: View) -> str:
    """Return the prompt without flags: typed flags are in the recipe already."""
    try:
        words, _ = split(view.prompt)
    except Refused:  # admitted by an older grammar
        words = view.prompt
    return literally(words)


def unchanged(text: str, view: View) -> bool:
    """Return whether a submitted field is empty, or what it was filled in with."""
    said = " ".join(text.split())
    return not said or said == " ".join(words_of(view)[:LONGEST].split())
