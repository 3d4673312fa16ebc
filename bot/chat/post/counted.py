"""Counts the outcome of each request about a message, as one word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bot.chat.post.troubles import Expired, Later
from engine.logline import about

if TYPE_CHECKING:
    from bot.chat.post.cases import Case
    from bot.chat.post.edits import Edit

Edited = Callable[[str, str], None]


def silent(_kind: str, _outcome: str) -> None:
    """Count nothing."""


@contextmanager
def counted(edit: Edit[Any], job: str, case: Case, edited: Edited) -> Iterator[None]:
    """Count one request, and log in its job's name. Its exceptions pass through."""
    try:
        with about(job):
            yield
    except Later as later:
        edited(edit.kind, "limited" if later.limited else "outage" if later.outage else "later")
        raise
    except Expired:
        edited(edit.kind, "expired")
        raise
    except Exception:
        edited(edit.kind, "failed")
        raise
    edited(edit.kind, "gone" if case.lost else "done")
