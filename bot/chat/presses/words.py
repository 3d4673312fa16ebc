"""The words of a job as a form is filled in with them, and whether somebody left them as they were. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.prompt.flags import split
from bot.prompt.permutations import literally
from bot.refused import Refused

if TYPE_CHECKING:
    from bot.views import View

LONGEST = 2000  # characters, as /imagine takes them


def words_of(view: View) -> str:
    """Without flags: what was typed of these is in the recipe already."""
    try:
        words, _ = split(view.prompt)
    except Refused:  # taken by an older grammar
        words = view.prompt
    return literally(words)


def unchanged(text: str, view: View) -> bool:
    """Whether what came back of a form is what it was filled in with, or nothing."""
    said = " ".join(text.split())
    return not said or said == " ".join(words_of(view)[:LONGEST].split())
