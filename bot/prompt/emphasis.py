"""Emphasis in AUTOMATIC1111's syntax: `(word:1.2)`, `((word))`, `[word]`, `\\(` for a plain bracket.

The engine applies it; this module only removes it.
"""

from __future__ import annotations

import re

# `engine.prompt.emphasis` has the same pattern: else a word could hide behind a number that only the engine removes.
NUMBER = r"[+-]?(?:10(?:\.0{0,6})?|[0-9](?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_MARK = re.compile(rf"\\([()\[\]\\])|:\s*{NUMBER}\s*\)|[()\[\]]")


def remove_emphasis(text: str) -> str:
    """Remove emphasis, so that a word split by it is whole again: `g(or:1.3)e` becomes `gore`."""
    return _MARK.sub(lambda mark: mark[1] or "", text)
