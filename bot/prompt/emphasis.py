"""Emphasis as AUTOMATIC1111's web UI writes it: `(word:1.2)`, `((word))`, `[word]`, `\\(` for a plain bracket.

The engine reads it. Here it is only taken away, for whoever looks at the words alone. Knows brackets; knows no words.
"""

from __future__ import annotations

import re

# `engine.emphasis` has the same, or a word could hide behind a number that only the engine takes away.
NUMBER = r"[+-]?(?:10(?:\.0{0,6})?|[0-9](?:\.[0-9]{0,6})?|\.[0-9]{1,6})"
_MARK = re.compile(rf"\\([()\[\]\\])|:\s*{NUMBER}\s*\)|[()\[\]]")


def bare(text: str) -> str:
    """`text` without emphasis, so that what was one word is one again: `g(or:1.3)e` becomes `gore`."""
    return _MARK.sub(lambda mark: mark[1] or "", text)
