"""Whether a model was made to draw without guidance. Its files do not say so; only its name does, by custom."""

from __future__ import annotations

import re

_WORDS = re.compile(r"(^|[^a-z])(turbo|lightning|hyper|lcm|schnell|dmd2?)([^a-z]|$)", re.IGNORECASE)


def guidance_for(name: str, usual: float) -> float:
    """The default guidance of a model of this name: 1, which is none, where it was distilled, else the kind's usual."""
    return 1.0 if _WORDS.search(name) else usual
