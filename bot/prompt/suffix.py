"""A member's suffix for every prompt: inserted after its words and before its flags, so that later flags still win."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.prompt.flag_aliases import expand_flag_aliases
from bot.prompt.flag_values import parse_value
from bot.prompt.flags import find_first_flag, split_flags

if TYPE_CHECKING:
    from collections.abc import Mapping


def add_suffix(text: str, suffix: str) -> str:
    """Insert `suffix` after the words of `text`; return `text` unchanged if the suffix is empty or already in it."""
    suffix = suffix.strip()
    if not suffix or " ".join(suffix.split()).casefold() in " ".join(text.split()).casefold():
        return text
    flag_start = find_first_flag(text)
    words = text[:flag_start].rstrip()
    flags = text[flag_start:]
    separator = "" if suffix[0] in ",.;:" else " "
    return f"{words}{separator}{suffix}{' ' if flags else ''}{flags}"


def add_end_prompt_suffix(walk_end: str, suffix: str, aliases: Mapping[str, str]) -> str:
    """Append the words of `suffix` to the end of a walk; its flags are in the prompt and apply to the whole walk.

    `aliases`: the member's flag aliases. A suffix with braces differs in each prompt, and one with weights cannot be
    part of one text: neither is added here. Raises `UserError` if it becomes too long.
    """
    if any(brace in suffix for brace in "{}"):
        return walk_end
    words, _ = split_flags(expand_flag_aliases(suffix, aliases)[0])
    return walk_end if "::" in words else str(parse_value("walk", add_suffix(walk_end, words), ()))
