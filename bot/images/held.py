"""Which pictures the picture check holds, and the sentences about them. Pure.

In a checked job a picture is shown only after the check or a moderator has passed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bot.views import View
from engine.job import Presence

NO_CHECK = "No worker can check pictures now: a moderator must look at these before they are shown."
NO_FILM = "Its pictures are held by the picture check, so there is no film to show yet."


class Looked(Protocol):
    """The verdicts of the picture check and the moderators, as `Shot` and `Stored` have them."""

    @property
    def verdict(self) -> str: ...
    @property
    def reviewed(self) -> str: ...


def is_held(check: bool, one: Looked) -> bool:
    """Return whether a picture must not be shown now. A moderator's decision overrides the check."""
    if one.reviewed:
        return one.reviewed != "shown"
    return check and one.verdict != "passed"


def held(view: View) -> tuple[int, ...]:
    """Return the images of a job that must not be shown now."""
    return tuple(shot.index for shot in view.pictures if is_held(view.check, shot))


def why(index: int, one: Looked) -> str:
    """Return why a held picture is not shown, as a sentence."""
    if one.reviewed:
        return f"Picture {index + 1} stays hidden: a moderator has looked at it."
    if one.verdict == "flagged":
        return f"Picture {index + 1} is held by the picture check until a moderator has looked at it."
    return f"Picture {index + 1} could not be checked, so it is held until a moderator has looked at it."


def lines(view: View) -> list[str]:
    """Return a sentence for each held picture of a job."""
    return [why(shot.index, shot) for shot in view.pictures if is_held(view.check, shot)]


def notes(check: bool, pool: str, workers: Mapping[str, Presence]) -> tuple[str, ...]:
    """Return the note on an accepted job whose pictures no worker can check."""
    able = any(one.checks and pool in one.pools for one in workers.values())
    return (NO_CHECK,) if check and not able else ()
