"""A member's own ending for every prompt: put behind its words and before its flags, so that later flags still win."""

from __future__ import annotations

from bot.prompt.flags import first_flag


def suffixed(text: str, suffix: str) -> str:
    """`text` with `suffix` behind its words; as it is where the suffix is empty or stands in it already."""
    suffix = suffix.strip()
    if not suffix or " ".join(suffix.split()).casefold() in " ".join(text.split()).casefold():
        return text
    at = first_flag(text)
    words, flags = text[:at].rstrip(), text[at:]
    joint = "" if suffix[0] in ",.;:" else " "
    return f"{words}{joint}{suffix}{' ' if flags else ''}{flags}"
