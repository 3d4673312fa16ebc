"""Retries of failed requests, later each time.

Knows the edit policy and a job's failures in a row; knows nothing of Discord or of messages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bot.discord.delivery.backoff import backoff_pause

if TYPE_CHECKING:
    from bot.discord.delivery.edit_policy import Edit, EditPolicy
    from bot.discord.delivery.errors import RetryLater
    from bot.discord.delivery.tracked_messages import TrackedMessage

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # attempts at one message after unexpected errors


class RetryPolicy:
    """Retries for the courier; `clock` is its clock."""

    def __init__(self, edit_policy: EditPolicy[Any], clock: Callable[[], float]) -> None:
        self._edit_policy = edit_policy
        self._clock = clock
        self._in_outage = False  # according to the latest requests

    def reset(self, message: TrackedMessage) -> None:
        """Reset the counters after a request for the message succeeded."""
        message.rate_limit_count = message.outage_count = 0
        self._in_outage = False

    def postpone(self, edit: Edit[Any], message: TrackedMessage, error: RetryLater) -> None:
        """Try again later; in an outage, wait longer each time. An endless rate limit holds up only its own message."""
        message.rate_limit_count = message.rate_limit_count + 1 if error.rate_limited else 0
        message.outage_count = message.outage_count + 1 if error.outage else 0
        seconds = backoff_pause(error.seconds, message.outage_count)
        if error.outage and not self._in_outage:
            self._in_outage = True
            log.warning("Discord is unreachable, deliveries wait: %s", error)
        level = logging.DEBUG if error.outage else logging.INFO
        log.log(level, "job %s: its message waits %.1f s: %s", edit.job, seconds, error)
        self.requeue(edit, message, seconds)
        if error.rate_limited and message.rate_limit_count <= MAX_ATTEMPTS:
            self._edit_policy.block_bucket(edit.bucket, self._clock() + seconds)

    def requeue(self, edit: Edit[Any], message: TrackedMessage, seconds: float) -> None:
        """Queue the same edit again, unless something newer comes."""
        message.has_new_frames = bool(message.frames)
        self._edit_policy.mark_failed(edit, self._clock(), seconds)

    def retry_after_error(self, edit: Edit[Any], message: TrackedMessage) -> bool:
        """After an unexpected error, try a final again a few times; return False when that is over."""
        if not edit.final or message.error_count >= MAX_ATTEMPTS - 1:
            return False
        message.error_count += 1
        self.requeue(edit, message, 2.0**message.error_count)
        return True
