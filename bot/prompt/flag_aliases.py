"""Flag aliases: `--mine` in a prompt stands for words and flags that the member saved before. Pure.

It inserts an alias as it is and searches it for no others: its content was checked when it was saved. A member's suffix
goes after the words of every prompt and before its flags, so that later flags still win.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.domain.texts import shorten
from bot.prompt.concepts import clean_prompt, expand_braces
from bot.prompt.flag_values import parse_value
from bot.prompt.flags import find_first_flag, is_known, split_flags, split_spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALIAS_NOTE = "--{} stands for “{}”."


def find_unknown_flags(text: str) -> tuple[str, ...]:
    """Return unknown flags in `text`, in braces too: perhaps aliases. Raises `UserError` for unreadable braces."""
    flags = (flag.name for prompt in expand_braces(text) for flag in split_spans(prompt)[1])
    return tuple(dict.fromkeys(name for name in flags if not is_known(name)))


def expand_flag_aliases(text: str, aliases: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return `text` with the member's flag aliases expanded, and a note on each.

    An alias's words go behind the words before the first flag, so that they are no value of another flag; its flags go
    where it stood. Text after it belongs to the words, as behind any flag without a value. Raises `UserError` for more
    text than a prompt may have.
    """
    if not aliases:
        return text, ()
    leading_text, flags = split_spans(text)
    words = [leading_text]
    flag_texts = list[str]()
    used_names = list[str]()
    for flag in flags:
        if is_known(flag.name) or flag.name not in aliases:
            flag_texts.append(flag.text)
            continue
        value = aliases[flag.name]
        flag_start = find_first_flag(value)
        words += [value[:flag_start], flag.tail]
        flag_texts.append(value[flag_start:])
        used_names.append(flag.name)
    if not used_names:
        return text, ()
    expanded_text = " ".join(
        [_join_words(words), *(flag_text.strip() for flag_text in flag_texts if flag_text.strip())]
    )
    return clean_prompt(expanded_text), tuple(
        ALIAS_NOTE.format(name, shorten(aliases[name], 100)) for name in dict.fromkeys(used_names)
    )


def _join_words(words: Iterable[str]) -> str:
    text = ""
    for word_text in filter(None, (word.strip() for word in words)):
        text += word_text if not text or word_text[0] in ",.;:" else f" {word_text}"
    return text


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
