"""Forbidden patterns: regular expressions by RE2, whose time is linear in the text for any pattern.

Syntax: https://github.com/google/re2/wiki/Syntax. Patterns ignore case. One takes at most 256 KiB and 2000
instructions, so that fifty of them cost a text some milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import re2

from bot.domain.errors import UserError
from bot.domain.texts import clean_text, shorten
from bot.policy.rules.match_budget import MatchBudget

_re2: Any = re2  # it has no type hints
MAX_LENGTH = 200  # characters
MAX_INSTRUCTIONS = 2000
MAX_MEMORY = 1 << 18  # bytes
WORK_PER_STEP = (
    10_000  # instructions × bytes that take as long as a step, in RE2's worst case: a pattern outgrows its memory
)


def parse_pattern(text: str) -> str:
    """Return a pattern, checked. Raises `UserError` (422) with RE2's reason."""
    pattern = clean_text(text)
    if not pattern or len(pattern) > MAX_LENGTH:
        raise UserError(f"A pattern has 1 to {MAX_LENGTH} characters; this one has {len(pattern)}.")
    excerpt = shorten(pattern, 60)
    try:
        expression = _compile(pattern)
    except _re2.error as error:
        raise UserError(f"“{excerpt}” is no pattern of RE2: {shorten(_error_reason(error), 120)}.") from error
    if expression.programsize > MAX_INSTRUCTIONS:
        raise UserError(
            f"“{excerpt}” is too large a pattern: it makes {expression.programsize} of {MAX_INSTRUCTIONS} instructions."
        )
    if expression.search(b"") or expression.search(b"~"):
        raise UserError(f"“{excerpt}” matches nearly everything: no prompt could be made.")
    return pattern


def find_first_match(readings: Sequence[str], patterns: Sequence[str], budget: MatchBudget) -> str | None:
    """Return the first pattern that matches a reading of a text; patterns that RE2 rejects are skipped.

    Raises `BudgetExceeded` if that takes more than is left of the `budget`.
    """
    texts = [text.encode("utf-8", "replace") for text in dict.fromkeys(readings)]
    for pattern in patterns:
        if not pattern:
            continue
        try:
            expression = _compile(pattern)
        except _re2.error:
            continue
        budget.spend(expression.programsize * sum(map(len, texts)) // WORK_PER_STEP)
        if any(expression.search(text) for text in texts):
            return pattern
    return None


def _compile(pattern: str) -> Any:  # re2 has no public name for it
    options = _re2.Options()
    options.max_mem = MAX_MEMORY
    options.log_errors = False
    options.case_sensitive = False
    options.never_capture = True
    return _re2.compile(pattern.encode(), options)


def _error_reason(error: Exception) -> str:
    """Return RE2's message, which is bytes and names the faulty part."""
    message = error.args[0] if error.args else "it cannot be read"
    return message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
