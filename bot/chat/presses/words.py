"""The prompt of a job as a form is filled in with it, and whether somebody left it unchanged. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.prompt.flags import split_flags
from bot.prompt.permutations import escape_braces
from bot.refused import UserError

if TYPE_CHECKING:
    from bot.views import JobView

MAX_PROMPT = 2000  # characters, as /imagine takes them


def prompt_without_flags(view: JobView) -> str:
    """Return the prompt without flags: typed flags are in the recipe already."""
    try:
        prompt, _ = split_flags(view.prompt)
    except UserError:  # admitted by an older grammar
        prompt = view.prompt
    return escape_braces(prompt)


def is_unchanged(text: str, view: JobView) -> bool:
    """Return whether a submitted field is empty, or what it was filled in with."""
    normalized_text = " ".join(text.split())
    return not normalized_text or normalized_text == " ".join(prompt_without_flags(view)[:MAX_PROMPT].split())
