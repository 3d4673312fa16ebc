"""A member's own ending for every prompt: put behind its words and before its flags, so that later flags still win."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.prompt.flags import first_flag, split
from bot.prompt.own import spelt
from bot.prompt.values import read

if TYPE_CHECKING:
    from collections.abc import Mapping


def suffixed(text: str, suffix: str) -> str:
    """`text` with `suffix` behind its words; as it is where the suffix is empty or stands in it already."""
    suffix = suffix.strip()
    if not suffix or " ".join(suffix.split()).casefold() in " ".join(text.split()).casefold():
        return text
    at = first_flag(text)
    words, flags = text[:at].rstrip(), text[at:]
    joint = "" if suffix[0] in ",.;:" else " "
    return f"{words}{joint}{suffix}{' ' if flags else ''}{flags}"


def walk_suffixed(to: str, suffix: str, own: Mapping[str, str]) -> str:
    """The words at the end of a walk with those of `suffix`; its flags stand in the prompt, and hold for the whole way.

    `own`: what the member's own flags stand for. A suffix with braces is another one in each prompt, and one with
    weights is no part of one text: neither is added here. Raises `Refused` where it becomes too long.
    """
    if any(sign in suffix for sign in "{}"):
        return to
    words, _ = split(spelt(suffix, own)[0])
    return to if "::" in words else str(read("walk", suffixed(to, words), ()))
