"""A member's suffix for every prompt: inserted after its words and before its flags, so that later flags still win."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.prompt.flags import first_flag, split
from bot.prompt.own import spelt
from bot.prompt.values import read

if TYPE_CHECKING:
    from collections.abc import Mapping


def suffixed(text: str, suffix: str) -> str:
    """Insert `suffix` after the words of `text`; return `text` unchanged if the suffix is empty or already in it."""
    suffix = suffix.strip()
    if not suffix or " ".join(suffix.split()).casefold() in " ".join(text.split()).casefold():
        return text
    at = first_flag(text)
    words, flags = text[:at].rstrip(), text[at:]
    joint = "" if suffix[0] in ",.;:" else " "
    return f"{words}{joint}{suffix}{' ' if flags else ''}{flags}"


def walk_suffixed(to: str, suffix: str, own: Mapping[str, str]) -> str:
    """Append the words of `suffix` to the end of a walk; its flags are in the prompt and apply to the whole walk.

    `own`: the member's flag aliases. A suffix with braces differs in each prompt, and one with weights cannot be part
    of one text: neither is added here. Raises `Refused` if it becomes too long.
    """
    if any(sign in suffix for sign in "{}"):
        return to
    words, _ = split(spelt(suffix, own)[0])
    return to if "::" in words else str(read("walk", suffixed(to, words), ()))
