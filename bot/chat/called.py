"""The title of a job on its cards. Pure."""

from __future__ import annotations

from bot.prompt.flags import prompt_title

NO_PROMPT = "without a prompt"  # a blend, or a job with an init image, needs none


def job_title(prompt: str) -> str:
    """Return the prompt without emphasis and flags, or `WORDLESS`."""
    return prompt_title(prompt) or NO_PROMPT
