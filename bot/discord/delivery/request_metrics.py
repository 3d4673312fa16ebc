"""Counts the outcome of each request about a message, as one word."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bot.discord.delivery.errors import RetryLater, TokenExpired
from engine.process.log_format import log_context

if TYPE_CHECKING:
    from bot.discord.delivery.edit_policy import Edit
    from bot.discord.delivery.tracked_messages import TrackedMessage

RequestCounter = Callable[[str, str], None]


def count_nothing(_kind: str, _outcome: str) -> None:
    """Count nothing."""


@contextmanager
def count_request(edit: Edit[Any], job: str, message: TrackedMessage, count_outcome: RequestCounter) -> Generator[None]:
    """Count one request, and name its job in the log. Its exceptions pass through."""
    try:
        with log_context(job):
            yield
    except RetryLater as error:
        count_outcome(edit.kind, "limited" if error.rate_limited else "outage" if error.outage else "later")
        raise
    except TokenExpired:
        count_outcome(edit.kind, "expired")
        raise
    except Exception:
        count_outcome(edit.kind, "failed")
        raise
    count_outcome(edit.kind, "gone" if message.response_lost else "done")
