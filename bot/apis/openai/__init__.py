"""OpenAI's image API, spoken by the chatroom: names and shapes as in OpenAI's published description of its API."""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="OpenAI's image API")
