"""The title of a job on its cards. Pure."""

from __future__ import annotations

from bot.prompt.flags import title

WORDLESS = "without a prompt"  # a blend, or a job with an init image, needs none


def called(prompt: str) -> str:
    """Return the prompt without emphasis and flags, or `WORDLESS`."""
    return title(prompt) or WORDLESS
