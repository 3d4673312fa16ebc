"""Forbidden patterns: regular expressions by RE2, whose time is linear in the text for any pattern.

Syntax: https://github.com/google/re2/wiki/Syntax. Patterns ignore case. One takes at most 256 KiB and 2000
instructions, so that fifty of them cost a text some milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import re2

from bot.refused import Refused
from bot.rules.effort import Effort
from bot.sentences import plain, shortened

LONGEST = 200  # characters
INSTRUCTIONS = 2000
MEMORY = 1 << 18  # bytes
A_STEP = 10_000  # instructions × bytes that take as long as a step, in RE2's worst case: a pattern outgrows its memory


def read_pattern(text: str) -> str:
    """Return a pattern, checked. Raises `Refused` (422) with RE2's reason."""
    pattern = plain(text)
    if not pattern or len(pattern) > LONGEST:
        raise Refused(f"A pattern has 1 to {LONGEST} characters; this one has {len(pattern)}.")
    shown = shortened(pattern, 60)
    try:
        compiled = _compiled(pattern)
    except re2.error as error:
        raise Refused(f"“{shown}” is no pattern of RE2: {shortened(_reason(error), 120)}.") from error
    if compiled.programsize > INSTRUCTIONS:
        raise Refused(
            f"“{shown}” is too large a pattern: it makes {compiled.programsize} of {INSTRUCTIONS} instructions."
        )
    if compiled.search(b"") or compiled.search(b"~"):
        raise Refused(f"“{shown}” matches nearly everything: no prompt could be made.")
    return pattern


def first(readings: Sequence[str], patterns: Sequence[str], effort: Effort) -> str | None:
    """Return the first pattern that matches a reading of a text; patterns that RE2 rejects are skipped.

    Raises `Tangled` if that takes more than the `effort` that is left.
    """
    texts = [text.encode("utf-8", "replace") for text in dict.fromkeys(readings)]
    for pattern in patterns:
        if not pattern:
            continue
        try:
            compiled = _compiled(pattern)
        except re2.error:
            continue
        effort.spend(compiled.programsize * sum(map(len, texts)) // A_STEP)
        if any(compiled.search(text) for text in texts):
            return pattern
    return None


def _compiled(pattern: str) -> Any:  # re2 has no public name for it
    options = re2.Options()
    options.max_mem, options.log_errors, options.case_sensitive, options.never_capture = MEMORY, False, False, True
    return re2.compile(pattern.encode(), options)


def _reason(error: Exception) -> str:
    """Return RE2's message, which is bytes and names the faulty part."""
    said = error.args[0] if error.args else "it cannot be read"
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
