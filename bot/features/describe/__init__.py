"""Image to prompt: suggests prompts for a picture."""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="Image to prompt")
