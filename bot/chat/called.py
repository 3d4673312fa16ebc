"""What a job is called on its cards: its words, or that it has none. Pure."""

from __future__ import annotations

from bot.prompt.flags import title

WORDLESS = "without words"  # a blend, or a picture to begin with, may do without


def called(prompt: str) -> str:
    """The words without emphasis and flags."""
    return title(prompt) or WORDLESS
