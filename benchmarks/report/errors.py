"""Describes errors for a report that people publish."""

from __future__ import annotations

import re

MAX_LENGTH = 300  # characters
FAILED = "failed"  # how the note of a row begins that an error left without a figure
# Only a quoted path may contain spaces. `//` begins no path: addresses stay. A compiler's flag may precede one: -I/usr.
_QUOTED_PATH = re.compile(r"""(['"])(?:(?:file://)?/(?!/)|[A-Za-z]:[/\\]).*?\1""")
_PATH = re.compile(
    r"""(?:(?<![\w./])|(?<=[\s'"]-[A-Za-z]))(?:(?:file://|~)?/(?!/)|[A-Za-z]:[/\\])[^\s'"<>|]+(?<![,;:.)\]])"""
)


def describe_error(error: Exception) -> str:
    """Return the error's type and text on one line, with `<path>` in place of each absolute path."""
    text = _PATH.sub("<path>", _QUOTED_PATH.sub(r"\1<path>\1", " ".join(str(error).split())))
    return f"{type(error).__name__}: {text}"[:MAX_LENGTH] if text else type(error).__name__
