"""Prompt shortening: which words of a prompt matter, and shorter versions of it to imagine."""

from __future__ import annotations

from bot.domain.feature import Feature

FEATURE = Feature(title="Prompt shortening")
