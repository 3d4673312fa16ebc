"""Which names and texts of flag aliases are allowed. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt.concepts import clean_prompt
from bot.prompt.flag_values import parse_value
from bot.prompt.flags import OUR_FLAGS, is_known, split_flags

MAX_ALIASES = 20  # aliases of a member
MAX_ALIAS_LENGTH = 500  # most characters of what an alias stands for
ALIAS_NAME = re.compile(r"[a-z][a-z0-9-]{0,23}")


def parse_alias_name(text: str) -> str:
    """Return the name of an alias as it is stored. Raises `UserError` for an invalid name or one that is a flag."""
    name = text.strip().lower().removeprefix("--")
    if not ALIAS_NAME.fullmatch(name):
        raise UserError(
            f"“{shorten(text, 40)}” is no name for an option: a word of up to 24 letters, digits and hyphens is, "
            "which begins with a letter."
        )
    if is_known(name):
        raise UserError(f"--{name} is a flag already: choose another name.")
    return name


def parse_alias_value(text: str, models: Sequence[str]) -> str:
    """Return what an alias stands for, cleaned. Raises `UserError`: a flag's own sentence if a flag in it is wrong."""
    value = clean_prompt(text)
    if not value:
        raise UserError("An option stands for words, flags or both: say which.")
    if len(value) > MAX_ALIAS_LENGTH:
        raise UserError(f"An option stands for at most {MAX_ALIAS_LENGTH} characters; these are {len(value)}.")
    if "{" in value or "}" in value:
        raise UserError("An option stands for one text: braces belong into the prompt itself.")
    for flag in split_flags(value)[1]:
        if flag.name in OUR_FLAGS:
            parse_value(flag.name, flag.value, models)
    return value
