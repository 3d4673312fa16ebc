"""Worker keys: admit workers on other machines to the broker."""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="Worker keys")
