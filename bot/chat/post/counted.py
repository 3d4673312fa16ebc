"""What became of each request about a message, in one word, for whoever counts them."""

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
    """Nobody counts."""


@contextmanager
def counted(edit: Edit[Any], job: str, case: Case, edited: Edited) -> Iterator[None]:
    """One request, and whatever is logged of it as its job's. What it raises passes on."""
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
