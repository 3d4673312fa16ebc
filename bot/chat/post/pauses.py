"""How long what failed waits until it is tried again: longer each time, and not for ever.

Pure; knows jobs by their names, and nothing of messages.
"""

from __future__ import annotations

FIRST, LONGEST = 2.0, 60.0  # seconds of an outage until the next attempt


def longer(seconds: float, times: int) -> float:
    """The pause after the same thing failed so many `times` in a row; `seconds` is the least."""
    return max(seconds, min(LONGEST, FIRST * 2.0 ** min(times - 1, 16))) if times else seconds
