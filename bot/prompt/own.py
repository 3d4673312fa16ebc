"""Flag aliases: `--mine` in a prompt stands for words and flags that the member saved before. Pure.

An alias is inserted as it is and never searched for others: its content was checked when it was saved.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bot.prompt.concepts import clean
from bot.prompt.flags import OURS, first_flag, is_known, pieces, split
from bot.prompt.permutations import expand
from bot.prompt.values import read
from bot.refused import Refused
from bot.sentences import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

LONGEST = 500  # most characters of what an alias stands for
NAME = re.compile(r"[a-z][a-z0-9-]{0,23}")
STANDS = "--{} stands for “{}”."


def foreign(text: str) -> tuple[str, ...]:
    """Return unknown flags in `text`, in braces too: perhaps aliases. Raises `Refused` for unreadable braces."""
    flags = (one.name for prompt in expand(text) for one in pieces(prompt)[1])
    return tuple(dict.fromkeys(name for name in flags if not is_known(name)))


def spelt(text: str, own: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return `text` with the member's flag aliases expanded, and a note on each.

    An alias's words go behind the words before the first flag, so that they are no value of another flag; its flags go
    where it stood. Text after it belongs to the words, as behind any flag without a value. Raises `Refused` for more
    text than a prompt may have.
    """
    if not own:
        return text, ()
    head, flags = pieces(text)
    words, rest, used = [head], list[str](), list[str]()
    for one in flags:
        if is_known(one.name) or one.name not in own:
            rest.append(one.text)
            continue
        value = own[one.name]
        at = first_flag(value)
        words += [value[:at], one.after]
        rest.append(value[at:])
        used.append(one.name)
    if not used:
        return text, ()
    made = " ".join([_joined(words), *(piece.strip() for piece in rest if piece.strip())])
    return clean(made), tuple(STANDS.format(name, shortened(own[name], 100)) for name in dict.fromkeys(used))


def _joined(words: Iterable[str]) -> str:
    made = ""
    for piece in filter(None, (one.strip() for one in words)):
        made += piece if not made or piece[0] in ",.;:" else f" {piece}"
    return made


def name_of(text: str) -> str:
    """Return the name of an alias as it is stored. Raises `Refused` for an invalid name or one that is a flag."""
    name = text.strip().lower().removeprefix("--")
    if not NAME.fullmatch(name):
        raise Refused(
            f"“{shortened(text, 40)}” is no name for an option: a word of up to 24 letters, digits and hyphens is, "
            "which begins with a letter."
        )
    if is_known(name):
        raise Refused(f"--{name} is a flag already: choose another name.")
    return name


def value_of(text: str, models: Sequence[str]) -> str:
    """Return what an alias stands for, cleaned. Raises `Refused`: a flag's own sentence if a flag in it is wrong."""
    value = clean(text)
    if not value:
        raise Refused("An option stands for words, flags or both: say which.")
    if len(value) > LONGEST:
        raise Refused(f"An option stands for at most {LONGEST} characters; these are {len(value)}.")
    if "{" in value or "}" in value:
        raise Refused("An option stands for one text: braces belong into the prompt itself.")
    for given in split(value)[1]:
        if given.name in OURS:
            read(given.name, given.value, models)
    return value
