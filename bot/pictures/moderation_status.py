"""Which pictures the picture check holds, and the sentences about them. Pure.

In a checked job a picture is shown only after the check or a moderator has passed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bot.domain.dto import JobView
from engine.contract import Presence

NO_CHECK = "No worker can check pictures now: a moderator must look at these before they are shown."
NO_FILM = "Its pictures are held by the picture check, so there is no film to show yet."


class ReviewStatus(Protocol):
    """The verdicts of the picture check and the moderators, as `PictureRef` and `StoredPicture` have them."""

    @property
    def verdict(self) -> str: ...
    @property
    def reviewed(self) -> str: ...


def is_held(check: bool, status: ReviewStatus) -> bool:
    """Return whether a picture must not be shown now. A moderator's decision overrides the check."""
    if status.reviewed:
        return status.reviewed != "shown"
    return check and status.verdict != "passed"


def held_images(view: JobView) -> tuple[int, ...]:
    """Return the images of a job that must not be shown now."""
    return tuple(picture.index for picture in view.pictures if is_held(view.needs_check, picture))


def hold_reason(index: int, status: ReviewStatus) -> str:
    """Return why a held picture is not shown, as a sentence."""
    if status.reviewed:
        return f"Picture {index + 1} stays hidden: a moderator has looked at it."
    if status.verdict == "flagged":
        return f"Picture {index + 1} is held by the picture check until a moderator has looked at it."
    return f"Picture {index + 1} could not be checked, so it is held until a moderator has looked at it."


def hold_reasons(view: JobView) -> list[str]:
    """Return a sentence for each held picture of a job."""
    return [hold_reason(picture.index, picture) for picture in view.pictures if is_held(view.needs_check, picture)]


def unchecked_notes(check: bool, pool: str, workers: Mapping[str, Presence]) -> tuple[str, ...]:
    """Return the note on an accepted job whose pictures no worker can check."""
    can_check = any(worker.has_picture_check and pool in worker.pools for worker in workers.values())
    return (NO_CHECK,) if check and not can_check else ()
